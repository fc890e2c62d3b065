"""Multi-view stereo: view selection, plane sweeps, depth maps, consistency, fusion, meshing."""
