# default_runtime.py in the scope of mmseg.
_base_ = './default_runtime.py'

default_scope = 'mmseg'
default_hooks = dict(visualization=dict(type='SegVisualizationHook', draw=False, _delete_=True))
visualizer = dict(type='SegLocalVisualizer', name='visualizer')
