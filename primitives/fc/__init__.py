"""The loop nests of fully connected layers."""
