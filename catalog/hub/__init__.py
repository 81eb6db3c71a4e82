"""Packs: catalogs published under versions, in folders, at URLs and on the Hugging Face Hub."""
