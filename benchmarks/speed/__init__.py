"""What editing costs, each figure a ratio to the unedited model, or to the same service without edits."""
