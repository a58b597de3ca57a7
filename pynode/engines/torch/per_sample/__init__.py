"""Steps of each sample's own.

The loop, its controller and its times are those of the joint solve with an array in place of each
number: arrays on the host (numpy, float64) for what decides, tensors (n, D) for states. n is the
number of samples that are still on their way: a sample that has ended leaves at once.
"""
