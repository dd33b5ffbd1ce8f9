"""The report of `hispec doctor` on a machine and a profile, as lines of text."""

from hispec.doctor import DoctorVerdict, Machine
from hispec.memory import gigabytes

OK, NO, NOTE = "ok", "no", "--"
WIDTH = 14


def report_lines(machine: Machine, verdict: DoctorVerdict | None) -> list[str]:
    """Return the lines that describe a machine, and the problems of a profile on it."""
    return _machine_lines(machine) + (verdict_lines(verdict) if verdict is not None else [])


def _machine_lines(machine: Machine) -> list[str]:
    endpoint, state, logged_in = machine.hub
    folder, free = machine.cache
    lines = [
        _line(OK, "python", f"{machine.python} on {machine.system}"),
        _line(OK, "torch", f"{machine.torch}, transformers {machine.transformers}"),
    ]
    for computes in machine.devices:
        device = computes.device
        dtypes = [name if name in computes.native else f"{name} (emulated)" for name in computes.dtypes]
        lines.append(
            _line(OK, device.name, f"{gigabytes(device.free)} of {gigabytes(device.total)} free, {device.title}")
        )
        lines.append(_line("", "", f"computes in {', '.join(dtypes)}"))
    if len(machine.devices) == 1:
        lines.append(_line(NOTE, "gpu", "none"))
    fewer = machine.threads <= machine.cores
    advice = "" if fewer else "; set OMP_NUM_THREADS, more threads than cores are slower"
    lines.append(
        _line(OK if fewer else NOTE, "threads", f"{machine.threads}, for {machine.cores} usable cores{advice}")
    )
    lines.append(_line(OK, "disk", f"{gigabytes(free)} free for downloads in {folder}"))
    login = "logged in" if logged_in else "not logged in (hf auth login, for models behind a licence)"
    told = {"reachable": "answers", "unreachable": "does not answer", "offline": "is not asked: offline"}[state]
    lines.append(_line(OK if state == "reachable" else NOTE, "hub", f"{endpoint} {told}, {login}"))
    absent = [name for name, version in machine.packages.items() if version is None]
    present = [f"{name} {version}" for name, version in machine.packages.items() if version is not None]
    lines.append(_line(OK, "packages", ", ".join(present)))
    lines += [_line(NOTE, "", f"not installed: {', '.join(absent)}")] if absent else []
    return lines


def verdict_lines(verdict: DoctorVerdict) -> list[str]:
    """Return the lines that say whether a profile runs here, and what it needs; the first is empty."""
    lines = ["", f"profile {verdict.profile}: {'no' if verdict.problems else 'yes, it runs here'}"]
    need, device = verdict.need, verdict.device
    if need is not None and device is not None:
        fits = need.total <= device.free
        total = f"{gigabytes(need.total)} needed on {device.name}, {gigabytes(device.free)} free"
        lines.append(_line(OK if fits else NO, "memory", total))
        lines += [_line("", "", f"{gigabytes(size):>12}  {what}") for size, what in need.lines()]
    for model, weights in verdict.weights.items():
        size = next((m.download for m in need.models if m.model == model), 0) if need is not None else 0
        fetched = f", {gigabytes(size)}" if weights == "to download" and size else ""
        status = {"here": OK, "to download": OK}.get(weights, NO)
        told = {"unknown": "not here", "refused": "behind a licence", "missing": "nowhere"}.get(weights, weights)
        lines.append(_line(status, "weights", f"{model}: {told}{fetched}"))
    if len(verdict.weights) > 1:
        status, told = {
            True: (OK, "ids mean the same tokens in all models"),
            False: (NO, "ids mean different tokens"),
            None: (NOTE, "not known before the tokenizers are here"),
        }[verdict.vocabulary]
        lines.append(_line(status, "vocabulary", told))
    for problem in verdict.problems:
        lines.append(_line(NO, "problem", getattr(problem, "summary", problem.message)))
        lines += [_line("", "", f"hint: {problem.hint}")]
    return lines


def _line(status: str, name: str, text: str) -> str:
    return f"  {status:<4}{name:<{WIDTH}}{text}".rstrip()
