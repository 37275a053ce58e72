"""Plan -> Python for a repository: a hook with which old state_dicts load, and its test.

| file | input -> output |
|---|---|
| hook_trace.py | a plan applied step by step -> the keys before each step, and injected values |
| code_layout.py | calls, tables and comments -> lines, laid out as ruff format does |
| step_code.py | one operation -> the statements that do it to a dict of tensors |
| hook_source.py | a trace -> the text of the hook's file |
| hook_check.py | the module's name -> the text of the test, and the tiny state that it loads |
"""
