"""What every emitter writes with: registers by role, loops of copies, functions of vectors."""
