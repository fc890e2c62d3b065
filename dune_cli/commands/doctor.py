"""`dune doctor`: what works on this machine, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from dune_cli import console, plugins
from dune_cli.commands import options
from dune_cli.commands.options import JsonOptions
from dune_cli.errors import JobFailed

VERBS = "dune_cli.commands"


@options.verb()
def command(
    *,
    import_all: bool = options.option("--all", "Import all packages, also those of few commands."),
    output: JsonOptions,
) -> None:
    """Check the packages, devices, weights and matchers of this machine.

    Imports the packages of the commands that need no weights. For each that fails or is missing it prints what does not
    work without it, and what to type. Other packages, and those in plain Python, are only searched for, unless --all is
    given. The exit code is 1 if a command that needs no weights cannot work. Memory is in GB = 10^9 bytes.

    \b
    Example: dune doctor --json
    """
    from dune_cli import doctor

    # a verb that works without downloaded weights states the packages without which it cannot, as NEEDS
    verbs = {verb: plugins.constant(VERBS, verb, "NEEDS") for verb in plugins.names(VERBS, "NEEDS")}
    facts = doctor.examine(verbs, import_all=import_all)
    if output.as_json:
        console.document(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        console.states(*_lines(facts))
    if not facts["ok"]:
        broken = [f"{verb['verb']} ({verb['why']})" for verb in facts["verbs"] if not verb["ok"]]
        raise JobFailed(f"cannot work on this machine: {'; '.join(broken)}")


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    versions = facts["versions"]
    yield f"dune {versions['dune']}, Python {versions['python']}, {versions['platform']}"
    yield ""
    yield "packages"
    names = max(len(package["package"]) for package in facts["packages"])
    versions_width = max(len(package["version"] or "") for package in facts["packages"])
    for package in facts["packages"]:
        state = "ok" if package["ok"] else "broken" if package["installed"] else "missing"
        state = "not here" if state == "missing" and package["optional"] else state
        name, version = package["package"], package["version"] or ""
        yield f"  {state:9}{name:{names}}  {version:{versions_width}}  {package['purpose']}"
        if not package["ok"]:
            yield f"           without it: {package['without']}"
            yield f"           {package['error'] if package['installed'] else 'run: ' + package['cure']}"
    yield ""
    yield "devices"
    yield from _device_lines(facts["devices"])
    yield ""
    yield "weights"
    yield from _weight_lines(facts["weights"])
    yield ""
    yield "matchers"
    if facts["matchers"]["error"]:
        yield f"  broken   {facts['matchers']['error']}"
    for matcher in facts["matchers"]["list"]:
        yield f"  {'ok' if matcher['ready'] else 'not here':9}{matcher['name']}"
        if not matcher["ready"]:
            yield f"           {matcher['why']}; cure: {matcher['cure']}"
    yield ""
    yield "commands that need no weights"
    for verb in facts["verbs"]:
        yield f"  {'ok' if verb['ok'] else 'broken':9}{verb['verb']:16}{verb['why'] or ''}".rstrip()


def _device_lines(devices: dict[str, Any]) -> Iterator[str]:
    cpu = devices["cpu"]
    threads = f", torch uses {devices['torch_threads']}" if "torch_threads" in devices else ""
    yield f"  cpu      {cpu['name']}, {cpu['cores']} cores{threads}"
    fast = "fast" if cpu["fast_bfloat16"] else "slow (no AMX)"
    yield f"           bfloat16 {fast}; {' '.join(cpu['flags'])}"
    if not devices["ok"]:
        yield f"  unknown  {devices['error']}"
        return
    for index, card in enumerate(devices["cuda"]):
        number_type = "bfloat16" if card["bfloat16"] else "no bfloat16"
        yield f"  cuda:{index}   {card['name']}, {card['memory_bytes'] / 1e9:.1f} GB, {number_type}"
    if not devices["cuda"]:
        yield "  cuda     none"
    yield f"  mps      {'yes' if devices['mps'] else 'none'}"
    yield f"  auto     --device {devices['auto']['device']} --dtype {devices['auto']['dtype']}"


def _weight_lines(weights: dict[str, Any]) -> Iterator[str]:
    state = "ok" if weights["writable"] else "broken"
    new = "" if weights["exists"] else " (made when needed)"
    yield f"  {state:9}{weights['folder']}{new}, {weights['free_bytes'] / 1e9:.1f} GB free"
    for problem in (weights["why"], weights["lock"]):
        if problem:
            yield f"           {problem}"
    if weights["offline"]:
        yield "           DUNE_OFFLINE is set: nothing is downloaded"
    width = max((len(found["name"]) for found in weights["present"]), default=0)
    for found in weights["present"]:
        yield f"  ok       {found['name']:{width}}  {found['origin']}"
    if not weights["present"]:
        yield "  none     'dune weights list' shows what can be fetched"
