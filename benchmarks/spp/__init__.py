"""What an analysis costs, and which blocks and convolutions of mmpretrain are found."""
