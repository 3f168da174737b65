"""Chat templates that write tools, after published formats of well-known families, and what a model says in each."""

from __future__ import annotations

from dataclasses import dataclass

_CHATML = (
    "{% macro turn(m) %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endmacro %}"
    "{% if add_generation_prompt is not defined %}{{ raise_exception('how does it end?') }}{% endif %}"
)
_ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_CALLS = "{% for c in m.tool_calls %}{% if c.function %}{% set c = c.function %}{% endif %}"


@dataclass(frozen=True)
class ToolFamily:
    """A template, and how its models write get_weather({"city": "Oslo"}), once and twice."""

    template: str
    one: str
    two: str = ""
    control: tuple[str, ...] = ()
    style: str = "json"


TOOL_FAMILIES = {
    "hermes": ToolFamily(
        _CHATML + "{% if tools %}{{ '<|im_start|>system\nTools:' }}{% for t in tools %}{{ '\n' + (t | tojson) }}"
        "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}{% if m.tool_calls %}"
        "{{ '<|im_start|>assistant' }}{% if m.content %}{{ '\n' + m.content }}{% endif %}" + _CALLS
        + "{{ '\n<tool_call>\n{\"name\": \"' + c.name + '\", \"arguments\": ' + (c.arguments | tojson) + "
        "'}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% elif m.role == 'tool' %}"
        "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
        "{% else %}{{ turn(m) }}{% endif %}{% endfor %}" + _ASK,
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
    ),
    "llama": ToolFamily(
        "{{ bos_token }}{% if tools %}{{ '<|start_header_id|>system<|end_header_id|>\n\n' }}{% for t in tools %}"
        "{{ t | tojson(indent=4) }}{% endfor %}{{ '<|eot_id|>' }}{% endif %}{% for m in messages %}"
        "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at once') }}{% endif %}"
        "{% set c = m.tool_calls[0].function %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
        "{{ '{\"name\": \"' + c.name + '\", \"parameters\": ' }}{{ c.arguments | tojson }}{{ '}<|eot_id|>' }}"
        "{% elif m.role == 'tool' %}{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' }}{{ m.content | tojson }}"
        "{{ '<|eot_id|>' }}{% else %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + "
        "'<|eot_id|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}{# <|python_tag|> #}",
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Oslo"}}',
        '{"name": "get_weather", "parameters": {"city": "Oslo"}}; {"name": "get_weather", "parameters": '
        '{"city": "Oslo"}}',
        ("<|python_tag|>",),
    ),
    "mistral list": ToolFamily(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{% if loop.last and tools %}"
        "{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}"
        "{{ '[INST] ' + m.content + '[/INST]' }}{% elif m.tool_calls %}{{ '[TOOL_CALLS] [' }}"
        "{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('ids have nine letters') }}"
        "{% endif %}{{ '{\"name\": \"' + c.function.name + '\", \"arguments\": ' + (c.function.arguments | tojson) }}"
        "{{ ', \"id\": \"' + c.id + '\"}' }}{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}"
        "{{ ']' + eos_token }}{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS] {\"content\": ' + (m.content | tojson) }}"
        "{{ ', \"call_id\": \"' + m.tool_call_id + '\"}[/TOOL_RESULTS]' }}{% elif m.role == 'assistant' %}"
        "{{ ' ' + m.content + eos_token }}{% else %}{{ raise_exception('no system here') }}{% endif %}{% endfor %}",
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo"}}]',
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Oslo"}}, {"name": "get_weather", "arguments": '
        '{"city": "Oslo"}, "id": "abcdefghi"}]',
        ("[TOOL_CALLS]",),
    ),
    "mistral names": ToolFamily(
        "{{ bos_token }}{% if tools %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}"
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}{% elif m.tool_calls %}"
        "{% for c in m.tool_calls %}{{ '[TOOL_CALLS]' + c.function.name + '[ARGS]' + (c.function.arguments | tojson) }}"
        "{% endfor %}{{ eos_token }}{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}"
        "{% elif m.role == 'system' %}{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}"
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}',
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}',
        ("[TOOL_CALLS]", "[ARGS]"),
    ),
    "deepseek": ToolFamily(
        "{{ bos_token }}{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}"
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% elif m.tool_calls %}"
        "{{ '<｜Assistant｜><｜tool▁calls▁begin｜>' }}{% for c in m.tool_calls %}{% if not loop.first %}{{ '\n' }}"
        "{% endif %}{{ '<｜tool▁call▁begin｜>' + c.type + '<｜tool▁sep｜>' + c.function.name + '\n```json\n' + "
        "c.function.arguments + '\n```<｜tool▁call▁end｜>' }}{% endfor %}"
        "{{ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}{% elif m.role == 'tool' %}"
        "{{ '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}{% elif m.role == 'system' %}"
        "{{ m.content }}{% else %}{{ '<｜Assistant｜>' + m.content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Oslo"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Oslo"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n'
        '{"city": "Oslo"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    ),
    "functionary": ToolFamily(
        _CHATML + "{% if tools %}{{ turn({'role': 'system', 'content': tools | tojson}) }}{% endif %}"
        "{% for m in messages %}{% if m.tool_calls %}{{ '<|im_start|>assistant\n' }}" + _CALLS
        + "{{ '<function=' + c.name + '>' + (c.arguments | tojson) + '</function>' }}{% endfor %}{{ '<|im_end|>\n' }}"
        "{% else %}{{ turn(m) }}{% endif %}{% endfor %}" + _ASK,
        '<function=get_weather>{"city": "Oslo"}</function>',
        '<function=get_weather>{"city": "Oslo"}</function><function=get_weather>{"city": "Oslo"}</function>',
    ),
    "qwen coder": ToolFamily(
        _CHATML + "{% if tools %}{{ turn({'role': 'system', 'content': tools | tojson}) }}{% endif %}"
        "{% for m in messages %}{% if m.tool_calls %}{{ '<|im_start|>assistant\n' }}" + _CALLS
        + "{{ '<tool_call>\n<function=' + c.name + '>\n' }}{% for k, v in c.arguments | items %}"
        "{{ '<parameter=' + k + '>\n' + v | string + '\n</parameter>\n' }}{% endfor %}"
        "{{ '</function>\n</tool_call>' }}{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}"
        "{% else %}{{ turn(m) }}{% endif %}{% endfor %}" + _ASK,
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
        style="tags",
    ),
    "glm": ToolFamily(
        "{% if tools %}{{ '<|system|>\n' + (tools | tojson) }}{% endif %}{% for m in messages %}"
        "{{ '<|' + ('observation' if m.role == 'tool' else m.role) + '|>\n' }}{% if m.content %}{{ m.content }}"
        "{% endif %}{% for c in m.tool_calls or [] %}{{ '\n<tool_call>' + c.function.name }}"
        "{% for k, v in c.function.arguments | items %}{{ '\n<arg_key>' + k + '</arg_key>\n<arg_value>' + v | string + "
        "'</arg_value>' }}{% endfor %}{{ '\n</tool_call>' }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        "\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>",
        "\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>"
        "\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>",
        style="tags",
    ),
    "none": ToolFamily(
        _CHATML + "{% for m in messages %}{{ turn(m) }}{% endfor %}" + _ASK,
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
    ),
}  # fmt: skip
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
