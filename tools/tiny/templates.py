#!/usr/bin/env python3
"""What Hugging Face's `transformers` renders from the chat templates of well-known models.

    pip install transformers==5.23.0 jinja2
    pip download --no-deps axolotl==0.19.0 --dest WHEELS
    python3 tools/tiny/templates.py --wheel WHEELS/axolotl-0.19.0-py3-none-any.whl --out tests/golden/templates.json

The templates stay in their wheel (axolotl's copies, Apache-2.0): committed are renderings of our own conversations, with the sha256 of
each template. The date that templates ask for is 2 January 2025.
"""

import argparse
import datetime
import hashlib
import json
import pathlib
import zipfile

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

FOLDER = "axolotl/utils/chat_templates/templates/"
TEMPLATES = """llama3 llama3_2_vision llama4 qwen_25 qwen3 phi_3 phi_35 phi_4 gemma gemma3 mistral_v1 mistral_v2v3 mistral_v3_tekken
mistral_v7_tekken chatml deepseek_v3 command_a exaone4""".split()

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

AWKWARD = " \"Quotes\" 'and' <tags> & {{ braces }} {% if %}\n\n  spaces, tab\t, \\ backslash, ünïcödé 中文 👩\u200d👧 \n"


def say(*turns):
    return [{"role": role, "content": content} for role, content in turns]


CONVERSATIONS = {
    "user": say(("user", "Hello!")),
    "system": say(("system", "Be brief."), ("user", "Hello!")),
    "turns": say(("system", "Be brief."), ("user", "Who are you?"), ("assistant", "A model."), ("user", "Which one?")),
    "awkward": say(("user", AWKWARD), ("assistant", AWKWARD), ("user", " x ")),
    "thought": say(("user", "2+2?"), ("assistant", "<think>\nEasy.\n</think>\n\n4"), ("user", "3+3?"), ("assistant", "<think>\nSo.\n</think>\n\n6")),
    "two users": say(("user", "a"), ("user", "b")),
    "assistant first": say(("assistant", "a"), ("user", "b")),
    "long": say(*[(role, f"{role} {turn}") for turn in range(5) for role in ("user", "assistant")]),
    "system late": say(("user", "a"), ("assistant", "b"), ("system", "c"), ("user", "d")),
    "empty": say(("user", ""), ("assistant", ""), ("user", "")),
    "tool": say(("user", "a"), ("assistant", "b"), ("tool", "{\"c\": 1}"), ("user", "d")),
}

# What templates may do, each by itself; rendered on the conversation "turns".
SNIPPETS = r"""
{{ true }} {{ false }} {{ none }} {{ 1 }} {{ 1.0 }} {{ 2.5 }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 2 ** 3 }} {{ 7 % 3 }}
{{ [1, 'a', none, true, 2.0] }} {{ {'a': 1, 'b': [false, "it's"]} }} {{ ['say "x"', "both ' and \""] }} {{ 'a\n\tb' }} {{ ['a\n\tb\\'] }}
{{ true | string }} {{ none | string }} {{ [true] | string }} {{ 'x' ~ 1 ~ 'y' }} {{ 'x' + 'y' }} {{ true ~ none }}
{{ messages[0] }} {{ messages[0] | tojson }} {{ messages[0] | tojson(indent=2) }}
{{ messages | length }} {{ messages[1:] | length }} {{ messages[::-1][0].role }} {{ messages[-1].content }} {{ messages[:2][1]['role'] }} {{ 'abcdef'[1:4] }} {{ 'abc'[::-1] }}
{{ {'b': 1, 'a': [1, 2]} | tojson(sort_keys=true) }} {{ {'a': [1, 2]} | tojson(separators=(',', ':')) }} {{ 'é<b>&\'' | tojson }} {{ 'é' | tojson(ensure_ascii=true) }}
{%- set ns = namespace(found=false, n=0) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.found = true -%}{%- set ns.n = ns.n + 1 -%}{%- endif -%}{%- endfor -%}{{ ns.found }} {{ ns.n }}
{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}<{{ m.content }}>{% endif %}{% endfor %}
a  {%- generation -%}  b  {%- endgeneration -%}  c
{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% if loop.index0 == 2 %}{% break %}{% endif %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ loop.previtem.role }}{% endfor %}
{{ ' a b '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'xa'.lstrip('x') }}|{{ 'ax'.rstrip('x') }}|{{ 'a,b,c'.split(',') }}|{{ 'a,b,c'.split(',', 1)[1] }}|{{ 'a b'.split() }}|{{ 'aXb'.lower().upper() }}
{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'a-b'.replace('-', '+') }} {{ 'abcabc'.find('c') }} {{ 'abcabc'.count('b') }} {{ 'hello world'.title() }} {{ 'hello'.capitalize() }} {{ '-'.join(['a', 'b']) }}
{{ {'a': 1}.get('a') }} {{ {'a': 1}.get('b') }} {{ {'a': 1}.get('b', 2) }} {{ {'a': 1, 'b': 2}.keys() | list }} {{ {'a': 1}.values() | list }} {% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% endfor %} {{ 'a' in {'a': 1} }}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(', ') }} {{ messages | map(attribute='role') | unique | list }} {{ messages | rejectattr('role', 'equalto', 'user') | list | length }}
{{ undefined_thing }}|{{ undefined_thing is defined }}|{{ undefined_thing | default('d') }}|{{ none is none }}|{{ tools is none }}|{{ tools }}|{% if not tools %}no{% endif %}|{{ enable_thinking is defined and enable_thinking is false }}
{{ 'x' is string }} {{ 1 is number }} {{ [1] is iterable }} {{ {'a': 1} is mapping }} {{ 'x' is iterable }} {{ [1] is sequence }} {{ true is boolean }} {{ 1 is integer }} {{ 1.5 is float }} {{ 3 is odd }} {{ 3 is divisibleby 3 }}
{% macro turn(role, text='t') %}[{{ role }}:{{ text }}]{% endmacro %}{{ turn('u') }}{{ turn('a', text='b') }}{{ turn(text='c', role='d') }}
{% set x %}block {{ 1 + 1 }}{% endset %}{{ x }}{% set a, b = 1, 2 %}{{ a }}{{ b }}{{ 'yes' if a == 1 else 'no' }}{{ 'only' if false }}
{{ strftime_now('%d %b %Y %H:%M') }} {{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ sep_token }}
{{ [3, 1, 2] | sort }} {{ [1, 2, 3] | sum }} {{ [1, 2] | first }} {{ [1, 2] | last }} {{ range(3) | list }} {{ range(1, 6, 2) | list }} {{ 'abc' | list }} {{ [[1, 2], [3]] | map('length') | list }} {{ [1, 2, 3] | max }} {{ -1 | abs }} {{ '3' | int + 1 }} {{ 'a\nb' | indent(2) }}
{{ dict(a=1, b='x') }} {{ dict(a=1) | tojson }} {{ (1, 2)[0] }} {{ 'a' * 3 }} {{ [1] + [2] }} {{ 'a' < 'b' }} {{ 1 == 1.0 }} {{ not true }} {{ 'A' | lower }} {{ 'a b' | title }} {{ ' a ' | trim }} {{ 'abc' | replace('b', 'x') }} {{ '%s-%d' | format('a', 3) }}
{{ raise_exception('it is ' ~ messages | length) }}
{% for m in messages if m.role == 'user' %}{{ m.content }}{{ ', ' if not loop.last }}{% else %}none{% endfor %} {% filter upper %}f{% endfilter %} {{ (messages | last).role }} {% raw %}{{ x }}{% endraw %}
{{ messages[0].missing is defined }} {{ messages[0].get('missing', 'd') }} {{ 'role' in messages[0] }} {{ messages[0]['tool_calls'] is defined }} {{ messages[0].content is string }} {{ messages[0].content | length }} {{ messages[0].keys() | list }}
""".strip("\n").split("\n") + ["  {% if true %}\n  kept\n  {% endif %}\n  end{# comment #}  {{- ' x ' -}}  y\n"]


class Date(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2025, 1, 2, 3, 4, 5)


def render(tokenizer, template, messages, add_prompt):
    try:
        return {"text": tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=add_prompt)}
    except Exception as error:
        return {"error": str(error)}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--wheel", required=True, type=pathlib.Path)
    arguments.add_argument("--out", required=True, type=pathlib.Path)
    options = arguments.parse_args()
    chat_template_utils.datetime = Date
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **TOKENS)
    wheel = zipfile.ZipFile(options.wheel)
    record = {"tokens": TOKENS, "unix_seconds": 1735787045, "conversations": CONVERSATIONS, "snippets": [], "templates": {}}
    for source in SNIPPETS:
        record["snippets"].append([source, render(tokenizer, source, CONVERSATIONS["turns"], False)])
    for name in TEMPLATES:
        source = wheel.read(f"{FOLDER}{name}.jinja")
        runs = {
            f"{conversation}{', prompt' if add_prompt else ''}": render(tokenizer, source.decode(), messages, add_prompt)
            for conversation, messages in CONVERSATIONS.items()
            for add_prompt in (False, True)
        }
        record["templates"][name] = {"sha256": hashlib.sha256(source).hexdigest(), "runs": runs}
    lines = json.dumps(record, ensure_ascii=False, indent=1, sort_keys=False).replace("\n     ", "")  # a line for each rendering
    options.out.write_text(lines + "\n")


if __name__ == "__main__":
    main()
