"""What a model costs, by formula: parameters, FLOPs, bytes. Nothing here runs one."""
