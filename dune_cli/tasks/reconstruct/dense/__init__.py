"""Dense points of N registered views: depth per view by plane sweeps, one fused cloud, one surface."""
