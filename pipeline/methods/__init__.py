"""Editing methods, ours and the papers' rivals, behind one interface: `contract.py`; `choices.py` lists them."""
