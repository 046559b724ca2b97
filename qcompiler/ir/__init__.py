"""The IR: annotations on torch.fx graphs, their text form, the verifier and the networkx view."""
