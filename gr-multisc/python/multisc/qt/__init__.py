"""The Qt windows of the blocks; imported only when a block shows one."""
