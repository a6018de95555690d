from hyena.export.decompose import decompose
