"""The Frozen Lake game of the IFT paper (arXiv:2405.11870, section 5.3 and appendix B.2)."""
