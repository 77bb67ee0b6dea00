"""What several systems share; the parts import each other only as the architecture test allows."""
