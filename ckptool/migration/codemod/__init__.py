"""ModuleInfo and source -> edits that register state, and the files with them.

| file | input -> output |
|---|---|
| attribute_fault.py | the structs that the others hand on |
| assignments.py | a file's AST -> the statements that bind an attribute |
| control_flow.py | two statements of a function -> whether one call can run both |
| seen_values.py | the right side of an assignment -> what it is seen to be: a tensor, None |
| statement_group.py | an assignment -> the others of its attribute: edited, left, or in the way |
| evidence.py | an attribute and the project's files -> why it is not edited, or its statements |
| uses.py | an attribute's uses -> replacements, or the use that the new object cannot serve |
| fixes.py | kind of fault -> the new statement; a registry |
| rewrite.py | a file and its edits -> the new text, in which nothing else changes |
| hook_lines.py | a class -> the lines that register a hook for old files |
| plan_edits.py | faults -> edits by file, and refusals |
| source_overlay.py | a project and edits -> a copy of its tree that shares all other files |
| write_files.py | the new texts -> the project's files, all or none |
"""
