"""Other tools' results, read into run directories of ours."""
