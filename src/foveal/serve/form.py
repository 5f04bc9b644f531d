"""Which form the answer of a request has to have."""

from foveal.core.box import ImageView, Space
from foveal.core.errors import InputError
from foveal.processing.processor import Processor
from foveal.serve.conversation import functions_of
from foveal.serve.grammar import box_grammar, choice_grammar, json_grammar, regex_grammar, tool_grammar
from foveal.serve.schema import ChatRequest, NamedTool, Said


def form(asked: Said, processor: Processor, specials: frozenset[str], view: ImageView | None) -> str | None:
    """The grammar of the answer; None leaves it free. `view` is the picture that boxes refer to.

    Raises:
        InputError: more than one form is asked for, or one that this model does not have.
    """
    found: list[str] = []
    given = asked.structured_outputs
    if given is not None:
        several = [v for v in (given.json_, given.regex, given.choice, given.boxes) if v is not None]
        if len(several) != 1:
            raise InputError(f"structured_outputs states {len(several)} forms; state one.")
        if given.json_ is not None:
            found.append(json_grammar(given.json_))
        elif given.regex is not None:
            found.append(regex_grammar(given.regex))
        elif given.choice is not None:
            found.append(choice_grammar(given.choice))
        elif given.boxes is not None:
            style = processor.processing.boxes
            space = getattr(style, "space", Space.RELATIVE_1000)
            if view is None:
                raise InputError("boxes are asked for, but no image is given; add one.")
            x, y = view.extent(space)
            found.append(box_grammar(style, given.boxes.labels, given.boxes.most, (int(x), int(y))))
    if isinstance(asked, ChatRequest):
        wanted = asked.response_format
        if wanted is not None and wanted.type == "json_object":
            found.append(json_grammar(None))
        elif wanted is not None and wanted.type == "json_schema":
            found.append(json_grammar(wanted.json_schema.schema_))
        found += _called(asked, specials, busy=bool(found))
    if len(found) > 1:
        raise InputError(
            "the request asks for several forms of the answer (response_format, structured_outputs, tool_choice); "
            "keep one."
        )
    return found[0] if found else None


def _called(asked: ChatRequest, specials: frozenset[str], *, busy: bool) -> list[str]:
    """The form of an answer that has to call a tool."""
    choice = asked.tool_choice
    if not asked.tools:
        if choice not in (None, "none", "auto"):
            raise InputError("tool_choice asks for a call, but the request has no tools; add them.")
        return []
    functions = functions_of(asked)
    if choice in (None, "auto", "none"):
        if busy and choice != "none":
            raise InputError(
                "tools and a form of the answer exclude each other; set tool_choice to 'none' or drop one."
            )
        return []
    if isinstance(choice, NamedTool):
        name = choice.function.name
        functions = [f for f in functions if f["name"] == name]
        if not functions:
            raise InputError(f"tool_choice names {name!r}, which is not among the tools.")
    several = asked.parallel_tool_calls is not False and choice == "required"
    return [tool_grammar(functions, specials, several=several)]
