"""What surrounds the blocks at run time: radio front ends, complete flowgraphs, their orderly end."""
