"""From the steps of a region to layers, places in memory and constants.

| module | what it does |
|---|---|
| codes.py | what the codes of a value mean |
| layer.py | what every layer answers: shapes, places, C |
| conv.py, pointwise.py, pool.py, shape.py, edges.py | the layers, one family a file, and how a step becomes one |
| planner.py | steps -> layers |
| fuse.py | residuals and tables into the layer before them |
| sizes.py, place.py, arena.py | input sizes -> strides and offsets |
"""
