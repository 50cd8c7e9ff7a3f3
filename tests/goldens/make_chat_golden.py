"""Makes `chat_templates.json`: dialogs rendered by Python's Jinja in the environment of `transformers`.

The templates are ours; between them they use what real ones use: methods of strings, slices, namespaces, macros, tests,
loop variables, control of white space, `raise_exception`, `strftime_now`, `tojson`.

    python make_chat_golden.py
"""

import json
from datetime import datetime
from pathlib import Path
from unittest import mock

import jinja2
import transformers
from transformers.utils import chat_template_utils

BOS, EOS = "<|begin|>", "<|end|>"
DATE = datetime(2026, 3, 9)

TEMPLATES = {
    "chatml": """
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|start|>system\\nBe useful.' + eos_token + '\\n' }}
    {%- endif %}
    {{- '<|start|>' + message['role'] + '\\n' + message['content'] + '<|end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\\n' }}
{%- endif %}
""",
    "dated": """{{ bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "01 Jan 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start|>system\\nToday: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|end|>" }}
{%- for message in messages if message.content is string %}
    {{- '<|start|>' + message.role + '\\n' + message['content'].strip() + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}
""",
    "thinking": """{% set ns = namespace(last=-1, system='') %}
{% for message in messages %}
{% if message.role == 'system' %}{% set ns.system = ns.system ~ message.content %}{% endif %}
{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{% endfor %}
{{- bos_token }}{{ ns.system }}
{%- macro turn(name, text) -%}
[{{ name | upper }}:{{ text | length }}] {{ text }}
{%- endmacro %}
{%- for message in messages %}
{%- if message.role == 'user' %}
{{- '<|start|>' }}{{ turn('user', message.content.lstrip()) }}{{ ' (last)' if loop.index0 == ns.last else '' }}
{%- elif message.role == 'assistant' and message.content is not none %}
{%- set content = message.content %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}
{{- '<|start|>' }}{{ turn(message.role, content) }}{{ eos_token }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant<think>\\n' }}{% endif %}""",
    "strict": """{{- bos_token -}}
{%- for message in messages -%}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('Conversation roles must alternate user/assistant') -}}
  {%- endif -%}
  {% if loop.index0 > 0 %}
  <|start|>{% endif %}
  {{ message | tojson }}
  {# a remark #}
  {%- if not loop.last %}, after {{ loop.revindex }}{% endif %}
{%- endfor -%}
{% if tools %}tools{% elif documents is none %} no documents{% endif %}

""",
    "control": """{% for message in messages %}
  {% if message.role == 'system' %}{% continue %}{% endif %}
  {% if loop.index > 3 %}{% break %}{% endif %}
{{ loop.index }}/{{ loop.length }} {{ message.get('name', 'nobody') }} {{ message.content.title() }} {{ message.content.replace('l', 'L') }}
{{ message.content[:3] }}|{{ message.content | first }}|{{ message.content.endswith('.') }}|{{ (message.content.split() | join('-')) }}
{% endfor %}
""",
}

DIALOGS = {
    "question": [["user", " Hello there.\n"]],
    "system": [["system", "  Be brief.\n\n"], ["user", "What is 2+2?"]],
    "turns": [
        ["user", "Say <|end|> and {{ bos_token }}!"],
        ["assistant", "<think>\nhm\n</think>\n\nNo, è il \"lama\"."],
        ["user", "\u00a0Why?\x1f "],
        ["assistant", ""],
        ["user", "Go on"],
    ],
}


def render(template, messages, date, prompt):
    clock = mock.Mock(wraps=datetime)
    clock.now.return_value = DATE
    # A template that is not told the day has no such function.
    no_clock = {} if date else {"strftime_now": jinja2.Undefined()}
    with mock.patch.object(chat_template_utils, "datetime", clock):
        return chat_template_utils._compile_jinja_template(template).render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=prompt,
            bos_token=BOS,
            eos_token=EOS,
            **no_clock,
        )


def main():
    cases = []
    for name, template in TEMPLATES.items():
        for dialog, turns in DIALOGS.items():
            messages = [{"role": role, "content": content} for role, content in turns]
            for date in [False, True] if name == "dated" else [False]:
                for prompt in [False, True]:
                    case = {"template": name, "dialog": dialog, "date": date, "generation_prompt": prompt}
                    try:
                        case["text"] = render(template, messages, date, prompt)
                    except Exception as error:
                        case["error"] = str(error)
                    cases.append(case)
    made_by = {"transformers": transformers.__version__}
    golden = {"made_by": made_by, "templates": TEMPLATES, "dialogs": DIALOGS, "cases": cases}
    path = Path(__file__).with_name("chat_templates.json")
    path.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(cases)} cases, {sum('error' in case for case in cases)} refused")


if __name__ == "__main__":
    main()
