"""Images: the index that says which there are, and the one way their pixels become crops."""
