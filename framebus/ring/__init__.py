"""The slot protocol: the bytes of a ring, the steps that write and read them, and who may hold how many slots."""
