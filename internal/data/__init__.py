"""Where requests wait and turns are kept: implementations of the ports in `biz`."""
