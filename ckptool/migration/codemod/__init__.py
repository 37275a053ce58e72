"""ModuleInfo and source -> edits that register state, and the files with them.

| file | input -> output |
|---|---|
| attribute_fault.py | the structs that the others hand on |
| assignments.py | a file's AST -> the statements that bind an attribute |
| evidence.py | an attribute and the project's files -> why its assignment is not edited |
| uses.py | an attribute's uses -> replacements, or the use that the new object cannot serve |
| fixes.py | kind of fault -> the new statement; a registry |
| rewrite.py | a file and its edits -> the new text, in which nothing else changes |
| hook_lines.py | a class -> the lines that register a hook for old files |
| plan_edits.py | faults -> edits by file, and refusals |
| source_overlay.py | a project and edits -> a copy of its tree that shares all other files |
| write_files.py | the new texts -> the project's files, all or none |
"""
