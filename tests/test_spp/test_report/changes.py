"""Changes of record files."""

import copy


def changed(record, metric='avg_var', block=3, **fields):
    """A copy of a record file's content with other fields; ``value`` is for one block."""
    record = copy.deepcopy(record)
    if 'value' in fields:
        record['blocks'][block][metric] = fields.pop('value')
    return {**record, **fields}
