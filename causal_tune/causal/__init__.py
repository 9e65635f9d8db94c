"""The method of CausalCLIP (arXiv 2512.13285) on frozen features; `docs/paper_map.md` maps its equations."""
