"""What tests share: miniatures of models, servers under test, plain references, simulated hardware."""
