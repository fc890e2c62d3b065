"""Networks for other runtimes: ONNX, int8, torch.export; and ONNX Runtime in place of torch."""
