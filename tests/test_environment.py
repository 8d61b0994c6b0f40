"""No variable that a loader, libc or interpreter obeys reaches a child that is to be shielded."""

from __future__ import annotations

import os
import pwd
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import safespawn
from safespawn import PIPE, _binding, _environ

pytestmark = pytest.mark.threat("T-16")

Policy = Literal["inherit", "scrub", "user"]
Environment = dict[bytes, bytes]

#: Each takes code, files or behaviour from a value: of the loader, libc, a shell, an
#: interpreter, a compiler, git, ssh or a debugger. Most are on somebody's block-list.
DANGEROUS = """
LD_PRELOAD LD_LIBRARY_PATH LD_AUDIT LD_BIND_NOW LD_DEBUG LD_DEBUG_OUTPUT LD_ORIGIN_PATH LD_PROFILE
LD_SHOW_AUXV LD_USE_LOAD_BIAS LD_ASSUME_KERNEL LD_DYNAMIC_WEAK LD_HWCAP_MASK LD_PREFER_MAP_32BIT_EXEC
GLIBC_TUNABLES MALLOC_CHECK_ MALLOC_TRACE MALLOC_PERTURB_ GCONV_PATH GETCONF_DIR HOSTALIASES LOCALDOMAIN
LOCPATH NIS_PATH NLSPATH RESOLV_HOST_CONF RES_OPTIONS TZDIR TMPDIR RESOLV_ADD_TRIM_DOMAINS MUSL_LOCPATH
DATEMSK ARGP_HELP_FMT LIBC_FATAL_STDERR_ LIBMEMUSAGE_FILE SOTRUSS_FROMLIST PCPROFILE_OUTPUT
IFS ENV BASH_ENV BASH_LOADABLES_PATH SHELLOPTS BASHOPTS PS4 PROMPT_COMMAND CDPATH GLOBIGNORE FPATH ZDOTDIR
BASH_FUNC_ls%% NULLCMD READNULLCMD
PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONINSPECT PYTHONUSERBASE PYTHONEXECUTABLE PYTHONBREAKPOINT PYTHONWARNINGS
PYTHONPLATLIBDIR PYTHONPYCACHEPREFIX
PERL5LIB PERLLIB PERL5OPT PERL5DB PERLIO_DEBUG RUBYLIB RUBYOPT RUBYPATH NODE_OPTIONS NODE_PATH
NODE_EXTRA_CA_CERTS JAVA_TOOL_OPTIONS _JAVA_OPTIONS JDK_JAVA_OPTIONS CLASSPATH JAVA_HOME LUA_PATH LUA_CPATH LUA_INIT
PHPRC PHP_INI_SCAN_DIR DOTNET_STARTUP_HOOKS CORECLR_PROFILER R_PROFILE TCLLIBPATH GUILE_LOAD_PATH GEM_PATH
GIT_SSH_COMMAND GIT_EXTERNAL_DIFF GIT_CONFIG_GLOBAL EDITOR VISUAL PAGER LESSOPEN LESSCLOSE MANPAGER BROWSER
TERMINFO TERMINFO_DIRS TERMCAP TERMPATH LS_COLORS LANGUAGE OUTPUT_CHARSET OPENSSL_CONF OPENSSL_MODULES SSL_CERT_FILE
SSLKEYLOGFILE KRB5_CONFIG KRB5CCNAME GSS_USE_PROXY DISPLAY XAUTHORITY DBUS_SESSION_BUS_ADDRESS SSH_AUTH_SOCK
http_proxy HTTPS_PROXY QT_PLUGIN_PATH GTK_MODULES GIO_EXTRA_MODULES VK_LAYER_PATH OCL_ICD_VENDORS XDG_CONFIG_HOME
SAFESPAWN_AUDIT ld_preload PATH_INFO HOMEBREW _LD_PRELOAD LC LANG_ TZ_
""".split()

NOT_ASCII = (b"\xff\xfe", b"LD_PRELOAD\xff", b"\xc3\xa9", b" HOME", b"HOME ", b"\nHOME", b"home")


@pytest.fixture(params=["vfork", "clone", "fork"])
def strategy(request: pytest.FixtureRequest) -> str:
    """Return each strategy."""
    return str(request.param)


@pytest.fixture(params=["scrub", "user"])
def policy(request: pytest.FixtureRequest) -> str:
    """Return each policy that takes variables away."""
    return str(request.param)


def child(strategy: str, **options: Any) -> tuple[Environment, tuple[str, ...]]:
    """Return the environment that a child got, in bytes, and the names that the report says were removed."""
    done = safespawn.run(["/usr/bin/env", "-0"], stdout=PIPE, check=True, strategy=strategy, **options)  # type: ignore[misc]
    lines = done.stdout.split(b"\0")[:-1]
    assert len({line.split(b"=", 1)[0] for line in lines}) == len(lines), "a name is there twice"
    return dict(line.split(b"=", 1) for line in lines), done.report.removed_env


def home_of(name: str) -> Environment:
    """Return what the policy ``user`` sets for an account."""
    account = pwd.getpwnam(name)
    return {
        b"HOME": os.fsencode(account.pw_dir),
        b"USER": os.fsencode(name),
        b"LOGNAME": os.fsencode(name),
        b"SHELL": os.fsencode(account.pw_shell or "/bin/sh"),
    }


# ------------------------------------------------------------------------ by name


@pytest.mark.parametrize("name", [*map(os.fsencode, DANGEROUS), *NOT_ASCII])
def test_dangerous_variable_is_gone(strategy: str, policy: str, name: bytes) -> None:
    """A variable that could make a program load, run or open something does not arrive, and is reported."""
    told, removed = child(strategy, env={b"TERM": b"xterm", name: b"1"}, env_policy=policy)

    assert name not in told
    assert told[b"TERM"] == b"xterm"
    assert removed == (name.decode("utf-8", "backslashreplace"),)


def test_inherited_environment_is_filtered(
    strategy: str, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own environment goes through the filter when none is given."""
    monkeypatch.setenv("LD_PRELOAD", "/no/such/library.so")
    monkeypatch.setenv("TERM", "dumb")

    told, removed = child(strategy, env_policy=policy)

    assert "LD_PRELOAD" in removed
    assert told[b"TERM"] == b"dumb"
    assert not set(told) - set(_environ.KEPT) - {name for name in told if name.startswith(b"LC_")}
    ours = {name for name, _ in _environ.split(_binding.environment())}  # C code may have set more than Python knows
    assert {os.fsencode(name) for name in removed} == ours - set(told)


def test_inherit_takes_nothing_away(strategy: str) -> None:
    """The default policy leaves every variable as it is, and says that it removed none."""
    given = {os.fsencode(name): b"1" for name in DANGEROUS if not name.startswith("LD_")}

    assert child(strategy, env=given) == (given, ())
    assert child(strategy, env=given, env_policy="inherit") == (given, ())


@pytest.mark.parametrize("name", ["LANG", "LC_ALL", "LC_MESSAGES", "LC_TIME", "TZ", "TERM"])
@pytest.mark.parametrize("value", ["/etc/passwd", "../../tmp/x", ":/etc/localtime", "a/b", "%n", "C.UTF-8%s", "/"])
def test_value_that_is_a_path_or_a_format_is_gone(strategy: str, policy: str, name: str, value: str) -> None:
    """A locale, time zone or terminal with '/' or '%' in it does not arrive: libc would open or format it."""
    told, removed = child(strategy, env={name: value}, env_policy=policy)

    assert os.fsencode(name) not in told
    assert removed == (name,)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LANG", "de_DE.UTF-8"),
        ("LC_ALL", "C"),
        ("LC_MESSAGES", "en_US@euro"),
        ("TZ", "CET-1CEST,M3.5.0,M10.5.0"),
        ("TZ", "UTC"),
        ("TERM", "screen.xterm-256color"),
        ("PATH", "/opt/bin:/usr/bin"),
        ("LANG", ""),
    ],
)
def test_harmless_value_arrives(strategy: str, policy: str, name: str, value: str) -> None:
    """Locale, time zone, terminal and PATH arrive as long as they are only names."""
    told, removed = child(strategy, env={name: value}, env_policy=policy)

    assert told[os.fsencode(name)] == os.fsencode(value)
    assert removed == ()


# ---------------------------------------------------------------- what is added


def test_path_is_never_missing(strategy: str, policy: str) -> None:
    """A child without PATH gets the system's, since libc's own default differs from place to place."""
    told, removed = child(strategy, env={}, env_policy=policy)

    assert told[b"PATH"] == b"/usr/bin:/bin"
    assert removed == ()


def test_scrub_adds_nothing_else(strategy: str) -> None:
    """The policy ``scrub`` makes up no identity."""
    assert child(strategy, env={}, env_policy="scrub") == ({b"PATH": b"/usr/bin:/bin"}, ())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: CAP_SETUID, CAP_SETGID")
@pytest.mark.parametrize("name", ["nobody", "daemon"])
@pytest.mark.parametrize("by_number", [False, True])
def test_user_policy_gives_the_home_of_the_target(name: str, by_number: bool) -> None:
    """The policy ``user`` sets HOME, USER, LOGNAME and SHELL of the user that the child becomes."""
    ours = {"HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/evil", "TERM": "vt100"}

    told, removed = child(
        "fork", env=ours, env_policy="user", user=pwd.getpwnam(name).pw_uid if by_number else name
    )

    assert told == {b"TERM": b"vt100", b"PATH": b"/usr/bin:/bin", **home_of(name)}
    assert removed == ()


def test_user_policy_without_user_means_ourselves(strategy: str) -> None:
    """Without ``user`` the policy ``user`` takes the account that we run as."""
    told, _ = child(strategy, env={"HOME": "/somewhere"}, env_policy="user")

    assert told == {b"PATH": b"/usr/bin:/bin", **home_of(pwd.getpwuid(os.geteuid()).pw_name)}


def test_user_policy_wins_over_the_allow_list(strategy: str) -> None:
    """HOME is the target user's even where the allow-list names it."""
    told, _ = child(strategy, env={"HOME": "/somewhere"}, env_policy="user", env_allow=["HOME"])

    assert told[b"HOME"] == home_of(pwd.getpwuid(os.geteuid()).pw_name)[b"HOME"]


def test_allow_list_lets_names_through(strategy: str, policy: str) -> None:
    """What ``env_allow`` names arrives with whatever value it has; its neighbours do not."""
    given = {"APP_MODE": "a/b%c", "APP_MODE2": "x", "LC_ALL": "a/b", "TZ": "/x", b"\xff": "y"}

    told, removed = child(strategy, env=given, env_policy=policy, env_allow=["APP_MODE", "LC_ALL", b"\xff"])

    assert {b"APP_MODE": b"a/b%c", b"LC_ALL": b"a/b", b"\xff": b"y"}.items() <= told.items()
    assert removed == ("APP_MODE2", "TZ")


def test_program_is_searched_in_the_filtered_path(strategy: str, policy: str) -> None:
    """The program is looked for in the PATH that the child has after the filter."""
    with safespawn.spawn(["true"], env={}, env_policy=policy, strategy=strategy) as process:  # type: ignore[misc]
        assert process.wait() == 0


# -------------------------------------------------- against a model that is slow

KNOWN = [b"HOME", b"LANG", b"LOGNAME", b"PATH", b"SHELL", b"TERM", b"TZ", b"USER"]
PARTS = [b"LC_", b"LD_", b"HOME", b"LANG", b"TZ", b"_", b"X", b"\xff", b" ", b"%", b"/", b"lc_"]

names = st.one_of(
    st.sampled_from(KNOWN),
    st.sampled_from([*map(os.fsencode, DANGEROUS), b"LC_ALL", b"LC_CTYPE", b"LC_"]),
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=3).map(b"".join),
    st.binary(min_size=1, max_size=6).filter(lambda name: not set(name) & set(b"\0=")),
)
values = st.one_of(
    st.lists(st.sampled_from([b"/", b"%", b"a", b"C.UTF-8", b":", b"\xff", b"=", b"\n"]), max_size=3).map(b"".join),
    st.binary(max_size=8).filter(lambda value: b"\0" not in value),
)
environments = st.dictionaries(names, values, max_size=8)
HOME = {b"HOME": b"/h", b"USER": b"u", b"LOGNAME": b"u", b"SHELL": b"/s"}


def model(given: Environment, policy: str, allowed: set[bytes], home: Environment) -> tuple[Environment, list[str]]:
    """Say slowly what arrives and what is removed, one rule after the other."""
    if policy == "inherit":
        return dict(given), []
    arrives: Environment = {}
    removed: list[str] = []
    for name in given:
        known = False
        for keep in KNOWN:
            known = known or name == keep
        is_locale = name[:3] == b"LC_"
        may_be_no_path = is_locale or name == b"LANG" or name == b"TERM" or name == b"TZ"
        is_path = given[name].count(b"/") > 0 or given[name].count(b"%") > 0
        if name in allowed:
            arrives[name] = given[name]
        elif not known and not is_locale:
            removed.append(name.decode("utf-8", "backslashreplace"))
        elif may_be_no_path and is_path:
            removed.append(name.decode("utf-8", "backslashreplace"))
        else:
            arrives[name] = given[name]
    if b"PATH" in arrives and b"PATH" not in allowed:
        arrives[b"PATH"] = b":".join(part for part in arrives[b"PATH"].split(b":") if part[:1] == b"/")
        if not arrives[b"PATH"]:
            del arrives[b"PATH"]
    if b"PATH" not in arrives:
        arrives[b"PATH"] = b"/usr/bin:/bin"
    if policy == "user":
        for name in home:
            arrives[name] = home[name]
    return arrives, removed


@settings(max_examples=500, derandomize=True, database=None, deadline=None)
@given(environments, st.sampled_from(["inherit", "scrub", "user"]), st.sets(names, max_size=3))
def test_filter_agrees_with_the_model(environment: Environment, policy: Policy, allowed: set[bytes]) -> None:
    """Whatever the names, values, policy and allow-list: the filter does what the model says."""
    made, removed = _environ.apply(
        tuple(environment.items()), policy, frozenset(allowed), tuple(HOME.items())
    )

    assert (dict(made), list(removed)) == model(environment, policy, allowed, HOME)
    assert len(made) == len(dict(made))


@pytest.mark.parametrize("strategy", ["vfork", "launcher", "fork"])
@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(environments, st.sampled_from(["scrub", "user"]), st.sets(names, max_size=3))
def test_child_agrees_with_the_model(
    strategy: str, environment: Environment, filtering: str, allowed: set[bytes]
) -> None:
    """What the model says is what the child sees, byte for byte."""
    # What the loader obeys would show in what the program prints (LD_SHOW_AUXV).
    allowed = {name for name in allowed if not name.startswith(b"LD_")}
    home = home_of(pwd.getpwuid(os.geteuid()).pw_name)

    told, removed = child(strategy, env=environment, env_policy=filtering, env_allow=allowed)

    assert (told, list(removed)) == model(environment, filtering, allowed, home)


@pytest.mark.parametrize("strategy", ["vfork", "launcher", "fork"])
@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(environments.filter(lambda env: not any(name.startswith(b"LD_") for name in env)))
def test_environment_goes_round(strategy: str, environment: Environment) -> None:
    """Any environment without NUL bytes arrives byte for byte under the policy ``inherit``."""
    assert child(strategy, env=environment) == (environment, ())


def test_scrub_leaves_no_relative_element_in_path(strategy: str) -> None:
    """Elements of PATH that depend on the working directory go; an allowed PATH stays as it is."""
    odd = {"PATH": ".:/usr/bin::bin:/bin"}

    assert child(strategy, env=odd, env_policy="scrub") == ({b"PATH": b"/usr/bin:/bin"}, ())
    kept = child(strategy, env=odd, env_policy="scrub", env_allow=["PATH"])
    assert kept == ({b"PATH": b".:/usr/bin::bin:/bin"}, ())
