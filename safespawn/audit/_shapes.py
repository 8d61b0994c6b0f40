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
    rb"|(?:db|user|admin|root|bind|ldap|smtp)pw$|(?<![a-z])[ou]pw$|(?<![a-z0-9])d?sonar\.login$"
)
#: The same, but what follows may as well be the name of a file, which is no secret.
WEAK = Expression(
    rb"(?<![a-z])key$|(?:api|access|secret|private|auth|account|encryption|decryption|signing|master|shared"
    rb"|storage|session|license|deploy|service|client|server|app|aes|hmac|rsa|ssh|ssl|tls|gpg|wg|unseal)key$"
    rb"|credentials?$|(?<![a-z])creds?$"
)
#: The same, unless what follows is a number: how many.
COUNT = Expression(rb"tokens$")
#: What follows is ``user:secret`` or a secret, or tells how to authenticate.
PAIR = Expression(rb"(?<![a-z0-9])auth$")
#: What follows is ``user:secret``, or a user.
LOGIN = Expression(rb"(?<![a-z0-9])log[io]n$")
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

Kind = Literal["strong", "weak", "count", "pair", "login"]
_OTHERS: tuple[tuple[Kind, Expression], ...] = (
    ("count", COUNT),
    ("weak", WEAK),
    ("pair", PAIR),
    ("login", LOGIN),
)


def kind_of(name: bytes) -> Kind | None:
    """Return how surely a name is that of a secret; None if it is not."""
    name = name[-NAME_MAX:].lower()
    if name in WORKING_DIRECTORY:
        return "weak"
    if HARMLESS_END.search(name):
        return None
    if STRONG.search(name):
        return "strong"
    return next((kind for kind, names in _OTHERS if names.search(name)), None)


# ------------------------------------------------------------------------------------------ values

#: What stands where a secret could, and is none: standard input, a reference, a switch, a template.
HARMLESS = Expression(
    rb"|@?-|/dev/(?:stdin|fd/\d+)|arn:aws[\w\-]*:.*|op://[^/]+/.*|projects/[\w\-]+/secrets/.*|stdin"
    rb"|true|false|yes|no|on|off|none|null|\{\{.*\}\}",
    re.DOTALL | re.IGNORECASE,
)
#: The same for programs that know these prefixes: to others they are the beginning of a password.
REFERENCE = Expression(rb"(?:file|env):.+|fd:\d+", re.DOTALL)
#: How to authenticate: what stands behind ``--auth`` and is no secret.
MECHANISM = Expression(
    rb"(?:[a-z0-9]+[_\-]){0,3}(?:basic|digest|plain|login|md5|ntlm|negotiate|kerberos|gssapi|spnego|x?oauth2?|bearer"
    rb"|external|anonymous|sha-?\d+|trust|peer|ident|ldap|pam|radius|jwt|iam|token|key|password|cert|certificate"
    rb"|publickey|interactive|socket|user|userpass|required|optional|enabled|disabled|default|auto|any|all|sspi|saml"
    rb"|oidc|m?tls|ssh|agent|shared|open|wpa\d?|psk|eap|local|system|native|only|plus)|\d{1,2}",
    re.IGNORECASE,
)
#: In a text that a shell reads: variables, and what another command says.
EXPANDED = Expression(rb"\$(?:\w+|\{[^{}]*\}|\(.*\))|`.*`|%\w+%", re.DOTALL)
#: The name of a file: base64 can begin with a slash too, but has these other characters then.
FILE = Expression(
    rb"@?[./~][^+=,]*(?:,.*)?|pkcs11:.*|(?:file|env):.*|fd:\d+|.*\.(?:pem|key|crt|cer|der|p12|pfx|pub|json|asc|gpg|kdbx|jks|txt|conf|ya?ml)",
    re.DOTALL,
)


def is_harmless(value: bytes, kind: Kind = "strong", *, expanded: bool) -> bool:
    """Return whether a value is no secret, for a name of that kind, in a text that a shell expands."""
    value = value.strip(b"\"'")
    return (
        HARMLESS.fullmatch(value) is not None
        or (kind in ("weak", "pair") and FILE.fullmatch(value) is not None)
        or (kind == "pair" and MECHANISM.fullmatch(value) is not None)
        or (kind == "count" and value.isdigit())
        or (expanded and EXPANDED.fullmatch(value) is not None)
    )


# -------------------------------------------------------------------------------------- in any text

#: Tokens that tell what they are by their form, as their makers' secret scanners find them. The part that may
#: be as long as it likes begins where no such character stands before.
TOKEN = Expression(
    rb"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])|npm_[A-Za-z0-9]{30,}"
    rb"|[sr]k_(?:live|test)_[A-Za-z0-9]{10,}|hf_[A-Za-z0-9]{20,}|shp(?:at|ca|pa|ss)_[A-Za-z0-9]{20,}"
    rb"|do[por]_v1_[a-f0-9]{40,}|dapi[a-f0-9]{32}|bot\d{6,12}:[\w\-]{30,}|AGE-SECRET-KEY-1[A-Z0-9]{20,})"
    rb"|(?<![\w\-])(?:github_pat_\w{20,}|gl(?:pat|dt|rt|ft|ptt|soat|cbt|imt|agent)-[\w\-]{16,}|xox[a-z]-[\w\-]{10,}"
    rb"|xapp-[\w\-]{10,}|glsa_\w{20,}|dckr_pat_[\w\-]{20,}|whsec_\w{16,}|lin_api_\w{20,}|figd_[\w\-]{20,}|sntry[su]_[\w\-]{20,}"
    rb"|rubygems_\w{20,}|PMAK-[\w\-]{20,}|NRAK-\w{20,}|ATATT3[\w\-]{20,}|sk-[\w\-]{20,}|AIza[\w\-]{30,}"
    rb"|pypi-[\w\-]{30,}|eyJ[\w\-]{8,}\.[\w\-]{4,}(?:\.[\w\-]*)?|eyJ[\w\-]{20,}|hv[sbr]\.[\w\-]{20,}|tskey-[\w\-]{16,}"
    rb"|SG\.[\w\-]{16,}\.[\w\-]{16,}|ya29\.[\w\-]{20,})"
    rb"|hooks\.slack\.com/services/[\w/]{10,}|discord(?:app)?\.com/api/webhooks/[\w/\-]{20,}"
    rb"|office(?:365)?\.com/webhook(?:b2)?/[\w/@\-]{20,}"
    rb"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY[\s\S]*"
)
#: ``scheme://user:secret@``: up to the last ``@`` of that part. Then one with ``/``, ``?`` or ``#`` in it, if
#: it cannot be a port: no URL has such a secret, but programs take it.
USERINFO = Expression(
    rb"://([^\s/?#\"'@:]*):([^\s/?#\"']*)@|://([^\s/?#\"'@:]*):(?!\d{1,5}(?:[/?#\s\"']|$))([^\s\"'@]{1,256})@"
)
#: A whole argument: ``user:secret@host``, also ``domain/user:secret@host``; no image with its digest.
AT_HOST = Expression(
    rb"(?::pserver:)?(?:[\w.\-\\]+/)?[\w.\-\\$]+:([^\s/@:]+)@(?!sha256:)[\w.\-]+(?::\d*)?(?:/\S*)?"
)
#: ``scheme://token@``: long, and with a digit.
USER_ALONE = Expression(rb"://((?=[A-Za-z_\-]{0,100}\d)[\w\-]{20,256})(?::(?:x-oauth-basic)?)?@")
#: ``NAME=``, ``"NAME":``, ``NAME: ``; the first group is the name.
ASSIGNED = Expression(
    rb"(?<![\w.\-])([\w.\-]+)"
    rb"(?:[\"'\]]?[ \t]{0,4}(?::=|=>?|%3[dD])[ \t]{0,4}|[\"'][ \t]{0,4}:\s{0,4}|:\s{1,4})"
)
#: ``NAME:`` at the start of an argument, of something quoted or of the value of an option.
HEADER = Expression(rb"(?<![^\"'=\s])([A-Za-z][\w\-]*)[ \t]{0,2}:[ \t]{0,4}")
#: The first word of an Authorization header, which is no secret.
SCHEME = Expression(rb"(?:Basic|Bearer|Digest|Token|ApiKey|Negotiate|AWS4-HMAC-SHA256)\s+", re.IGNORECASE)
#: ``/NAME:value``, ``-NAME:value``: as programs for Windows take it. The first group is the name.
#: ``--ConnectionStrings:NAME=`` is no such thing.
SLASHED = Expression(rb"(?<![^\s\"'])(?:/|--?)(?!ConnectionStrings?:)([A-Za-z][\w\-]*):(?=[^\s/\\])")
#: ``password:value``, where it cannot be a volume or an image.
COLON = Expression(
    rb"(?<![\w.\-/:])(?:password|passphrase|pwd|pass):([^,;}\s&\"'/][^,;}\s&\"']*)", re.IGNORECASE
)
#: ``<NAME>value<``, also with a prefix and attributes. CDATA goes to the end of all: it may have ``<`` in it.
ELEMENT = Expression(rb"<(?:[\w.\-]{1,64}:)?([\w.\-]+)(?:\s[^<>]{0,256})?>\s{0,64}(<!\[CDATA\[[\s\S]*|[^<]+)")
#: ``name="NAME" value="value"``, and the like of it in JSON and in short form; the value is the second group.
NAMED = Expression(
    rb"\b(?:key|name)[\"']?\s{0,4}[=:]\s{0,4}[\"']?([\w.\-:]+)[\"']?[\s,]{1,8}[\"']?value[\"']?\s{0,4}[=:]\s{0,4}"
    rb"(?:[\"']([^\"']*)|([^\s,;}\"']+))",
    re.IGNORECASE,
)
#: ``\"NAME\":\"value\"``: JSON within a text with quotes around it.
ESCAPED = Expression(rb"([\w.\-]+)\\{1,4}\"\s{0,4}:\s{0,4}(?:\\{1,4}\"([^\"\\]+)|([\w.\-]+))")
#: ``Bearer value``, in any text.
BEARER = Expression(
    rb"(?<![\w\-])bearer[ \t]{1,4}"
    rb"(?!(?:tokens?|auth|authentication|authorization|header|of|and|is)(?![\w\-.~+/]))([\w\-.~+/]+=*)"
    rb"|(?<![\w\-])basic[ \t]{1,4}((?=[a-z]{0,64}[0-9=+/])[a-z0-9+/]{8,}={0,2})(?![\w\-])",
    re.IGNORECASE,
)
#: SQL: ``PASSWORD 'x'``, ``IDENTIFIED BY 'x'``; of PowerShell: ``ConvertTo-SecureString 'x'``.
SQL = Expression(
    rb"\b(?:password|pragma\s{1,4}(?:re)?key|convertto-securestring(?:\s{1,4}-string)?|identified\s{1,4}(?:with\s{1,4}[\w'\"]{1,40}\s{1,4})?(?:by|as))"
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
