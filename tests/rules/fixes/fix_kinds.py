"""How the fix of each rule is tried: every rule is here once."""

COMMANDS = (
    *("CK202", "CK203", "CK205", "CK209", "CK211", "CK217", "CK224", "CK225", "CK305", "CK309"),
    "CK310",
    *("CK302", "CK303", "CK304", "CK313", "CK322", "CK326", "CK852", "CK854", "CK855", "CK901"),
    *("CK201", "CK222", "CK314", "CK316", "CK317", "CK603", "CK605", "CK851", "CK902"),
)
"""Rules whose fix is a `ckptool migrate` or `ckptool convert` for the file of the finding."""


STATEMENTS = {
    "CK204": r"state_dict\.pop\(.*\)$",
    "CK207": r"state_dict\.pop\(.*?\)",
    "CK208": r"module\.load_state_dict\(.*?\)",
    "CK206": r"operator\..*$",
    "CK209": r"state_dict = \{.*\}$",
    "CK212": r"load_state_dict\((.*)\)$",
    "CK213": r"state_dict\.pop\(.*?\)",
    "CK404": r"state_dict\.pop\(.*?\)",
    "CK214": r"state_dict\.pop\([^)]*\)",
    "CK215": r"state_dict\[.*$",
    "CK216": r"state_dict = .*$",
    "CK220": r"state_dict[.\[].*$",
    "CK225": r"\{.*\}$",
    "CK235": r"state_dict\[.*\](?=; or)",
    "CK301": r"del checkpoint.*$",
    "CK308": r"state_dict\[.*clone\(\)",
    "CK316": r"state_dict\[.*$",
    "CK310": r"save_file\(.*\)",
    "CK312": r"state_dict\[.*$",
    "CK403": r"checkpoint[\[.].*$",
    "CK502": r"state_dict\[[^,]*\]",
    "CK503": r"state_dict\[.*?clone\(\)",
}
"""Rule -> pattern of the code within its fix."""


SOURCES = ("CK101", "CK102", "CK103", "CK104", "CK108", "CK110", "CK111")
"""Rules whose fix is another line in the module's source."""

BUFFER_LINES = ("CK105", "CK106", "CK107", "CK109", "CK112")
"""Rules whose fix is a line about a buffer, tried one by one in test_source_lines.py."""
RUN_LINES = (
    "CK233",
    "CK234",
    "CK238",
    "CK330",
    "CK331",
    "CK332",
    "CK333",
    "CK334",
    "CK335",
    "CK336",
)
"""Rules on traced runs and watched objects, whose fix is a line of the script or its module."""
OWN_TESTS = (
    *(
        *("CK114", "CK221", "CK226", "CK227"),
        "CK218",
        "CK229",
        "CK228",
        "CK307",
        "CK311",
        "CK402",
        "CK405",
        "CK501",
        "CK604",
        "CK701",
        "CK702",
    ),
    *("CK801", "CK802", "CK803", "CK804"),
)
"""Rules with a test of their own: code that needs more than the file, or two files."""
POLICY = ("CK328", "CK329", "CK853", "CK856", "CK857", "CK858", "CK859", "CK860")
"""Rules on policies: what the fix says is done to the command line or the configuration."""
CHAIN = (
    *("CK870", "CK871", "CK872", "CK873", "CK874", "CK875", "CK876", "CK877", "CK878", "CK879"),
)
"""Rules on a chain of migrations: commands in their fixes are run in test_chain_fixes.py."""
FOLDER = ("CK236", "CK306", "CK601", "CK602")
"""Rules on files next to each other: their code and commands are run in test_folder_code.py."""
LOOKS = ("CK113", "CK210", "CK230", "CK231", "CK232", "CK401", "CK805", "CK806")
"""Rules whose fix is a command that shows what to decide, or records the decision."""
TRAINING = ("CK219", "CK223", "CK320", "CK321", "CK327", "CK337")
"""Rules whose fix is code of the script that saves or loads: run in test_training_code.py. Files
of a library are named to the person: a packed weight (CK219), the slices of ranks (CK321)."""
PROSE = {
    "CK237": "only the library that wrote the quantised file loads it",
    "CK315": "only the library of the object can unpack it",
}
"""Rules whose fix asks a person, or for code or files that are not here: code -> for what."""
