"""How a model is made: training, calibration, the gate that it must pass, and its model card. Pure."""
