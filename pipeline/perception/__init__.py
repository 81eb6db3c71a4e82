"""Perceptual backbones: published networks that judge pictures, where their weights are present.

`lpips.py`: perceptual distance; `identity.py`: whether a face stays the same person; `inception.py`: features for FID
and KID, which `distributions.py` computes. `contract.py` is what they share, `weights.py` reads and checks their files,
`backbones.py` finds them in a folder and names what is absent. No network stands in for another.
"""
