"""Many devices and processes: meshes, sharding, padding."""
