"""The page of `detris demo`: segment by sentence in a browser, compare two checkpoints, export a Space.

Importing this package needs Gradio 6. `space` and `limits` do not. `review` is the page of `detris data review`.
"""
