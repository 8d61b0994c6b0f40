"""What a secret on a command line looks like: names, values, tokens. Data, and how to ask it. Pure.

All expressions are for bytes. Where they repeat something without a bound, a character that ends the
repetition cannot be part of it, so a text of any kind takes time in proportion to its length.
"""

from __future__ import annotations

import re
from typing import Literal

from ._expression import Expression

# ------------------------------------------------------------------------------------------- names

#: In the name of an option, a variable or a header, in lower case.
STRONG = Expression(
    rb"passw(?:or[dt]|d)?(?![a-z]{0,8}less)|passphrase|passcode|(?<!by)(?<!com)(?<!tres)(?<!sur)(?<!multi)pass(?![a-z])"
    rb"|pwd|pswd|secret|token(?!i[sz]|s$)|credential(?!s?$)|authorization|cookie"
    rb"|connection[-_.]?string|(?<![a-z0-9])_auth$"
    rb"|(?<![a-z0-9])(?:bearer|otp|totp|psk|pin|pw|pat|sas)(?![a-z0-9])"
    rb"|(?:db|user|admin|root|bind|ldap|smtp)pw$|(?<![a-z])[ou]pw$"
)
#: The same, but what follows may as well be the name of a file, which is no secret.
WEAK = Expression(
    rb"(?<![a-z])key$|(?:api|access|secret|private|auth|account|encryption|decryption|signing|master|shared"
    rb"|storage|session|license|deploy|service|client|server|app|aes|hmac|rsa|ssh|ssl|tls|gpg|wg|unseal)key$"
    rb"|credentials?$|(?<![a-z])creds?$"
)
#: The same, unless what follows is a number: how many.
COUNT = Expression(rb"tokens$")
#: What follows is ``user:secret``, or tells how to authenticate.
PAIR = Expression(rb"(?<![a-z0-9])auth$")
#: With such an end a name tells where the secret is, or something about it.
HARMLESS_END = Expression(
    rb"(?:[-_.]|passw(?:or)?d|pass|passphrase|pwd|token|secret|credentials?|cookie|key)(?:file|path|dir|directory|fd"
    rb"|stdin|command|cmd|prompt|env|var|name|id|type|kind|length|len|size|min|max|policy|ttl|age|days|expiry|expires"
    rb"|expiration|timeout|format|algorithm|algo|helper|url|uri|endpoint|store|manager|provider|server|count|limit"
    rb"|enabled|required|version|source|src|ref|mode|method|status|user|username|jar|regex|pattern|budget|window"
    rb"|only|browser)s?$|askpass$|^\.?key$"
    rb"|(?:partition|row|object|label|shmem|queue|semaphore|sort|primary|foreign|public|pub|host|cache|old)[-_.]?key$"
)
#: With such a start an option is a switch: the next argument is not its value.
SWITCH = Expression(
    rb"-{1,2}(?:no|ask|prompt|with|without|show|get|list|print|hide|skip|disable|enable|generate|use|allow|is)[-_]"
)
#: With such a start a word behind ``config`` is what to do, not the name of a setting.
VERB = Expression(rb"(?:set|unset|get|list|delete|add)-")
#: Of a longer one the end is looked at, which bounds the time that a hostile one takes.
NAME_MAX = 256
#: The shell's own variables; PWD is a password too, in a connection string.
WORKING_DIRECTORY = frozenset((b"pwd", b"oldpwd"))

#: Headers with a colon and no blank behind it, which curl and httpie take: what else has a colon there is a
#: volume or an image.
HEADER_NAME = Expression(rb"x-.*|(?:proxy-)?authorization|cookie|private-token|job-token|api-?key")
#: Parameters that make a URL a secret.
SIGNATURE = Expression(rb"key|sig|(?:x-amz-|x-goog-)?signature")

Kind = Literal["strong", "weak", "count", "pair"]


def kind_of(name: bytes) -> Kind | None:
    """Return how surely a name is that of a secret; None if it is not."""
    name = name[-NAME_MAX:].lower()
    if name in WORKING_DIRECTORY:
        return "weak"
    if HARMLESS_END.search(name):
        return None
    if STRONG.search(name):
        return "strong"
    others: tuple[tuple[Kind, Expression], ...] = (("count", COUNT), ("weak", WEAK), ("pair", PAIR))
    return next((kind for kind, names in others if names.search(name)), None)


# ------------------------------------------------------------------------------------------ values

#: What stands where a secret could, and is none: standard input, a reference, a switch, a template.
HARMLESS = Expression(
    rb"|-|@[./~\-].*|/dev/(?:stdin|fd/\d+)|(?:file|env|fd|arn):.*|op://.*|projects/.*|stdin"
    rb"|true|false|yes|no|on|off|none|null|\{\{.*\}\}|(?:id|type|src|source)=.*",
    re.DOTALL | re.IGNORECASE,
)
#: In a text that a shell reads: variables, and what another command says.
EXPANDED = Expression(rb"\$(?:\w+|\{[^{}]*\}|\(.*\))|`.*`|%\w+%", re.DOTALL)
#: The name of a file: base64 can begin with a slash too, but has these other characters then.
FILE = Expression(
    rb"[./~][^+=,]*(?:,.*)?|pkcs11:.*|.*\.(?:pem|key|crt|cer|der|p12|pfx|pub|json|asc|gpg|kdbx|jks|txt|conf|ya?ml)",
    re.DOTALL,
)


def is_harmless(value: bytes, kind: Kind = "strong", *, expanded: bool) -> bool:
    """Return whether a value is no secret, for a name of that kind, in a text that a shell expands."""
    value = value.strip(b"\"'")
    return (
        HARMLESS.fullmatch(value) is not None
        or (kind == "weak" and FILE.fullmatch(value) is not None)
        or (kind == "count" and value.isdigit())
        or (expanded and EXPANDED.fullmatch(value) is not None)
    )


# -------------------------------------------------------------------------------------- in any text

#: Tokens that tell what they are by their form, as their makers' secret scanners find them. The part that may
#: be as long as it likes begins where no such character stands before.
TOKEN = Expression(
    rb"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])|npm_[A-Za-z0-9]{30,}"
    rb"|[sr]k_(?:live|test)_[A-Za-z0-9]{10,}|hf_[A-Za-z0-9]{20,}|shp(?:at|ca|pa|ss)_[A-Za-z0-9]{20,}"
    rb"|dop_v1_[a-f0-9]{40,}|AGE-SECRET-KEY-1[A-Z0-9]{20,})"
    rb"|(?<![\w\-])(?:github_pat_\w{20,}|glpat-[\w\-]{16,}|xox[a-z]-[\w\-]{10,}|sk-[\w\-]{20,}|AIza[\w\-]{30,}"
    rb"|pypi-[\w\-]{30,}|eyJ[\w\-]{8,}\.[\w\-]{4,}(?:\.[\w\-]*)?|eyJ[\w\-]{20,}|hv[sbr]\.[\w\-]{20,}|tskey-[\w\-]{16,}"
    rb"|SG\.[\w\-]{16,}\.[\w\-]{16,}|ya29\.[\w\-]{20,})"
    rb"|hooks\.slack\.com/services/[\w/]{10,}"
    rb"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY[\s\S]*"
)
#: ``scheme://user:secret@``: up to the last ``@`` of that part. Then one with ``/``, ``?`` or ``#`` in it, if
#: it cannot be a port: no URL has such a secret, but programs take it.
USERINFO = Expression(
    rb"://([^\s/?#\"'@:]*):([^\s/?#\"']*)@|://([^\s/?#\"'@:]*):(?!\d{1,5}(?:[/?#\s\"']|$))([^\s\"'@]{1,256})@"
)
#: A whole argument: ``user:secret@host``, also ``domain/user:secret@host``; no image with its digest.
AT_HOST = Expression(rb"(?:[\w.\-\\]+/)?[\w.\-\\$]+:([^\s/@:]+)@(?!sha256:)[\w.\-]+(?::\d+)?(?:/\S*)?")
#: ``scheme://token@``: long, and with a digit.
USER_ALONE = Expression(rb"://((?=[A-Za-z_\-]{0,100}\d)[\w\-]{20,256})(?::(?:x-oauth-basic)?)?@")
#: ``NAME=``, ``"NAME":``, ``NAME: ``; the first group is the name.
ASSIGNED = Expression(
    rb"(?<![\w.\-])([\w.\-]+)(?:[\"'\]]?[ \t]{0,4}(?::=|=>?)[ \t]{0,4}|[\"'][ \t]{0,4}:\s{0,4}|:\s{1,4})"
)
#: ``NAME:`` at the start of an argument, of something quoted or of the value of an option.
HEADER = Expression(rb"(?<![^\"'=\s])([A-Za-z][\w\-]*)[ \t]{0,2}:[ \t]{0,4}")
#: The first word of an Authorization header, which is no secret.
SCHEME = Expression(rb"(?:Basic|Bearer|Digest|Token|ApiKey|Negotiate|AWS4-HMAC-SHA256)\s+", re.IGNORECASE)
#: SQL: ``PASSWORD 'x'``, ``IDENTIFIED BY 'x'``.
SQL = Expression(
    rb"\b(?:password|identified\s{1,4}(?:with\s{1,4}[\w'\"]{1,40}\s{1,4})?(?:by|as))"
    rb"(?:\s{0,4}[=(]\s{0,4}|\s{1,4})(?=[\"'])",
    re.IGNORECASE,
)
#: Programs and options that read a secret from standard input.
_READERS = (
    rb"(?:chpasswd|smbpasswd|kinit|cryptsetup|--\w{0,16}-?stdin|--passphrase-fd|--with-token|-pass(?:in|out)?\s{1,4}stdin"
    rb"|vault\s{1,4}login|wg\s{1,4}pubkey|sudo\s[^|\n]{0,40}-\w{0,8}S|\bsu\b)"
)
#: ``echo x | chpasswd`` and the like; ``chpasswd <<< x``.
PIPED = Expression(
    rb"\b(?:echo|printf)\s{1,4}([^|\n]{1,256}?)\s{0,4}\|[^|\n]{0,256}?"
    + _READERS
    + rb"|"
    + _READERS
    + rb"[^<|\n]{0,128}<<<\s{0,4}(\"[^\"]*|'[^']*|\S+)"
)
#: Of a netrc(5), and what git's credential helpers read.
NETRC = Expression(rb"\blogin\s{1,4}\S{1,256}\s{1,4}password\s{1,4}(\S+)")
QUOTED = Expression(rb"\"((?:[^\"\\]|\\.?)*)|'((?:[^'\\]|\\.?)*)", re.DOTALL)
#: What a shell takes for one word; and one that ends where the shell would end the command.
SHELL_WORD = Expression(rb"(?:[^\s\"'\\]|\\.?|\"(?:[^\"\\]|\\.?)*(?:\"|$)|'[^']*(?:'|$))+", re.DOTALL)
SCRIPT_WORD = Expression(
    rb"(?:[^\s\"'\\;&|()<>`]|\\.?|\"(?:[^\"\\]|\\.?)*(?:\"|$)|'[^']*(?:'|$)|(?<=\$)\([^()]*\)|`[^`]*`)+",
    re.DOTALL,
)
JSON_VALUE = Expression(rb"[^,}\]\s]+")
#: What a parameter of a URL, or of a form, is followed by.
PARAMETER = Expression(rb"[^&]*")
