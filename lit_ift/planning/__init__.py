"""What a run will take, told before it begins: parameters, steps, FLOPs, memory, time; nothing is trained."""
