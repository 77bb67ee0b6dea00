"""The benchmark behind the tests: `spatialweave bench kernels`."""
