"""Photos to a 3-D scene by one of two back-ends, feature matches (`matches`) or point maps (`pointmaps`); both give a
`sfm.scene.Scene`, which `export` writes."""
