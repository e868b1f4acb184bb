"""The loop nests of recurrent layers."""
