"""Where programs have secrets that no name tells: the rules by program. Data. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from ._expression import Expression


class Tool(NamedTuple):
    """Where a program has secrets that their names do not tell.

    ``next``: words behind which one stands, to what separates it there from what may be seen: ``:`` as in
    ``user:secret``; nothing, where all of the next word is secret. ``joined``: options that it may be joined
    to, as in ``-pSECRET``. ``after``: a word that must have come before; without it the rule holds at once.
    ``from_word``: words from that number on have secrets, behind ``separator``, counted from 1 behind the
    program or behind ``after``. ``skips``: options whose values are not counted. ``plain``: names that are no
    secrets here. ``grouped``: one dash may have several options behind it. ``refers``: it takes ``env:NAME``,
    ``file:NAME`` and ``fd:N`` for where a secret is.
    """

    next: dict[bytes, bytes] = {}  # noqa: RUF012 - a named tuple, so never written to
    joined: tuple[bytes, ...] = ()
    after: Expression | None = None
    from_word: int = 0
    separator: bytes = b""
    plain: frozenset[bytes] = frozenset()
    skips: frozenset[bytes] = frozenset()
    grouped: bool = False
    refers: bool = False

    @property
    def hides(self) -> bool:
        """Whether it says where secrets are, and not only where none are."""
        return bool(self.next or self.joined or self.from_word)


def _words(text: str) -> list[bytes]:
    return text.encode().split()


def _tool(
    after: str = "",
    *,
    next: str = "",  # noqa: A002
    pairs: str = "",
    separator: str = "",
    joined: str = "",
    from_word: int = 0,
    plain: str = "",
    skips: str = "",
    grouped: bool = False,
    refers: bool = False,
) -> Tool:
    """Return a row, of words with blanks between; ``pairs`` are those of ``next`` with a separator."""
    announced = dict.fromkeys(_words(next), b"") | dict.fromkeys(_words(pairs), separator.encode())
    return Tool(
        announced,
        tuple(_words(joined)),
        Expression(after.encode(), re.IGNORECASE) if after else None,
        from_word,
        separator.encode(),
        frozenset(_words(plain)),
        frozenset(_words(skips)),
        grouped,
        refers,
    )


_LDAP = _tool(next="-w", joined="-w", grouped=True)
#: Options of smbclient(1) that have values.
_SMBCLIENT = (
    "-c --command -D --directory -p --port -I --ip-address -W --workgroup -d --debuglevel -m --max-protocol"
    " -n --netbiosname -O --socket-options -b --send-buffer -t --timeout -s --configfile -l --log-basename"
    " -R -i -A"
)

_ROWS: tuple[tuple[str, Tool], ...] = (
    ("mysql mysqldump mysqladmin mysqlimport mysqlshow mysqlcheck mysqlslap mysqlsh", _tool(joined="-p")),
    ("mysqlpump mysqlbinlog mysql_upgrade mycli mariadb mariadb-dump mariadb-admin", _tool(joined="-p")),
    ("mariadb-import mariadb-show mariadb-check mariadb-slap mariadb-binlog", _tool(joined="-p")),
    ("mysqladmin mariadb-admin", _tool(next="password")),
    ("sshpass mongo mongosh mongodump mongorestore mongoexport mongoimport", _tool(next="-p", joined="-p")),
    (
        "curl",
        _tool(
            pairs="-u --user -U --proxy-user -E --cert --proxy-cert",
            separator=":",
            joined="-u -U",
            grouped=True,
        ),
    ),
    ("curl", _tool(pairs="-b --cookie", separator="=")),
    ("wget", _tool(pairs="-u --user --http-user --ftp-user --proxy-user", separator=":")),
    ("curlftpfs", _tool(pairs="-o", separator=":")),
    ("http https xh hey siege wscat", _tool(pairs="-a", separator=":")),
    ("ab", _tool(pairs="-A -P", separator=":")),
    ("ab", _tool(pairs="-C", separator="=")),
    ("redis-cli redis-benchmark valkey-cli keydb-cli", _tool(next="-a")),
    ("redis-cli valkey-cli keydb-cli", _tool("auth", from_word=1)),
    (
        "docker podman nerdctl buildah skopeo helm crane oras regctl az ibmcloud",
        _tool("login", next="-p", joined="-p"),
    ),
    ("docker podman nerdctl buildah", _tool(plain="--secret")),
    ("gcloud", _tool(plain="--secret --key")),
    ("ffmpeg x264 x265", _tool(plain="-pass --pass")),
    ("az", _tool("secret", next="--value")),
    ("aws", _tool(plain="--key")),
    ("aws", _tool("put-parameter|put-secret-value|create-secret", next="--value")),
    ("gh", _tool("secret", next="-b --body")),
    ("fly flyctl doppler wrangler", _tool("secrets?", from_word=1, separator="=")),
    ("kubectl oc", _tool("secret", pairs="--from-literal", separator="=")),
    ("vault bao", _tool("login|unseal", from_word=1)),
    ("vault bao", _tool("put|write|patch", from_word=1, separator="=")),
    (
        "openssl",
        _tool(
            pairs="-passin -passout -pass -macopt",
            separator=":",
            next="-k -K -hmac -psk -srppass",
            refers=True,
        ),
    ),
    ("openssl", _tool("passwd", from_word=1, skips="-salt -in")),
    ("ldapsearch ldapmodify ldapadd ldapdelete ldapcompare ldapmodrdn ldapexop ldapwhoami", _LDAP),
    ("ldappasswd ldapvi dsconf dsidm ipa-client-install ipa-server-install ipa-replica-install", _LDAP),
    ("ldappasswd", _tool(next="-s -a")),
    ("samba-tool", _tool("create|add", from_word=2)),
    (
        "smbclient smbget smbcacls smbtree smbspool rpcclient net samba-tool wmic winexe pth-winexe",
        _tool(pairs="-U --user", separator="%", joined="-U"),
    ),
    ("smbclient smbcacls rpcclient net", _tool(plain="--pw-nt-hash")),
    ("smbclient", _tool("//.*", from_word=1, skips=_SMBCLIENT)),
    ("sqlcmd bcp osql tsql fisql isql", _tool(next="-P", joined="-P")),
    ("sqlplus sqlldr exp imp expdp impdp rman", _tool(from_word=1, separator="/")),
    ("zip unzip zipcloak", _tool(next="-P", joined="-P", grouped=True)),
    ("7z 7za 7zr 7zz taos", _tool(joined="-p")),
    ("arj", _tool(joined="-g")),
    ("rar unrar", _tool(joined="-p -hp")),
    ("htpasswd mosquitto_passwd", _tool(r"-[a-z]*b[a-z]*", from_word=2, skips="-C")),
    ("mkpasswd", _tool(from_word=1, skips="-m -S -R --method --salt --rounds")),
    ("useradd usermod adduser", _tool(next="-p", joined="-p", grouped=True)),
    ("ipmitool", _tool(next="-P -k -y", joined="-P")),
    (
        "snmpget snmpwalk snmpset snmpbulkget snmpbulkwalk snmptrap snmpinform",
        _tool(next="-c -A -X", joined="-c -A -X"),
    ),
    ("pk12util", _tool(next="-W -K")),
    ("plink pscp psftp", _tool(next="-pw")),
    ("xfreerdp wlfreerdp wfreerdp sdl-freerdp rdesktop mstsc", _tool(joined="/p: /gp: /pth:")),
    (
        "xfreerdp wlfreerdp wfreerdp sdl-freerdp",
        _tool(pairs="/gateway:", separator=",p:", joined="/gateway:"),
    ),
    ("signtool schtasks", _tool(next="/p /rp", joined="/p: /rp:")),
    ("net", _tool("use", from_word=3)),
    ("rdesktop twine ncftp ncftpget ncftpput ncftpls smbmap netexec nxc", _tool(next="-p", joined="-p")),
    ("crackmapexec cme evil-winrm", _tool(next="-p", joined="-p")),
    ("netexec nxc crackmapexec cme evil-winrm", _tool(next="-H")),
    ("psexec smbexec wmiexec atexec dcomexec secretsdump", _tool(next="-hashes -aesKey -p")),
    ("rabbitmqadmin pkcs11-tool openfortivpn kerbrute", _tool(next="-p")),
    (
        "snowsql cypher-shell couchbase-cli cbq exaplus hive esxcli racadm bmc-info redfishtool",
        _tool(next="-p"),
    ),
    ("ipmi-power ipmi-sel ipmi-sensors ipmi-chassis ipmiconsole veracrypt truecrypt", _tool(next="-p")),
    ("fcrackzip mutool aescrypt steghide check_mysql check_pgsql add-user supabase", _tool(next="-p")),
    ("caddy", _tool("hash-password", next="-p --plaintext")),
    ("doveadm", _tool("pw", next="-p")),
    ("conjur", _tool("login", next="-p")),
    ("knife ipmiutil check_ldap gpg-preset-passphrase", _tool(next="-P")),
    ("yubico-piv-tool ykman", _tool(next="-P -N -n -m")),
    ("slappasswd check_nt", _tool(next="-s")),
    ("check_snmp", _tool(next="-C -A -X")),
    ("check_http", _tool(pairs="-a -b", separator=":")),
    ("ccrypt ccencrypt ccdecrypt", _tool(next="-K", joined="-K")),
    ("mcrypt outguess", _tool(next="-k")),
    ("swift", _tool(next="-K")),
    ("dar", _tool(pairs="-K", separator=":")),
    ("guestmount guestfish virt-cat virt-customize virt-inspector", _tool(pairs="--key", separator=":key:")),
    ("sendemail", _tool(next="-xp")),
    ("swaks", _tool(next="-ap")),
    ("vmrun", _tool(next="-gp")),
    ("pdftk", _tool(next="user_pw owner_pw input_pw")),
    ("qpdf", _tool("--encrypt", from_word=1)),
    ("ecryptfs-add-passphrase", _tool(from_word=1)),
    ("db2", _tool(next="using")),
    ("neo4j-admin", _tool(next="set-initial-password")),
    ("doctl vercel codecov", _tool(next="-t")),
    ("glab tea rancher", _tool("login", next="-t")),
    ("gitlab-runner", _tool("register", next="-r -t")),
    ("snyk", _tool("auth", from_word=1)),
    ("chamber", _tool("write", from_word=3)),
    ("credstash", _tool("put", from_word=2)),
    ("nuget", _tool("push", from_word=2)),
    ("nuget", _tool("setapikey", from_word=1)),
    ("dotnet", _tool("nuget", next="-k")),
    ("drush", _tool("user:password|upwd", from_word=2)),
    ("qemu-system-x86_64 qemu-system-aarch64 qemu-img", _tool(pairs="-object --object", separator="data=")),
    ("airdecap-ng mupdf stegsnow enum4linux openttd", _tool(next="-p")),
    ("ss-local ss-server ss-redir cryptcat sic", _tool(next="-k")),
    ("yt-dlp youtube-dl cqlsh beeline hydra medusa sqlmap", _tool(next="-p")),
    ("vsql", _tool(next="-w")),
    ("mosquitto_pub mosquitto_sub mosquitto_rr", _tool(next="-P")),
    ("isql iusql", _tool(from_word=3)),
    ("rabbitmqctl", _tool("add_user|change_password|authenticate_user", from_word=2)),
    ("lftp", _tool(pairs="-u", separator=",")),
    ("influx", _tool(next="-t")),
    ("cargo", _tool("login", from_word=1)),
    ("composer", _tool(r"github-oauth\..*|gitlab-token\..*|http-basic\..*|bearer\..*", from_word=1)),
    ("pulumi", _tool(plain="--secret")),
    ("rclone", _tool("obscure", from_word=1)),
    ("rclone", _tool("create|update|password", next="pass password token client_secret key_pem")),
    (
        "nmcli",
        _tool(next="password psk wifi-sec.psk 802-11-wireless-security.psk 802-1x.password"),
    ),
    ("wpa_passphrase", _tool(from_word=2)),
    ("wpa_cli", _tool(next="psk password wep_key0")),
    ("iwconfig", _tool(next="key enc")),
    ("ssh-keygen", _tool(next="-N -P", grouped=True)),
    ("ansible-vault", _tool(next="encrypt_string")),
    ("etcdctl", _tool(pairs="--user", separator=":")),
    ("security", _tool(next="-w")),
    ("keyctl", _tool("add|update", from_word=3)),
    ("bw", _tool("login", from_word=2)),
    ("bw", _tool("unlock", from_word=1)),
    ("kadmin kadmin.local", _tool(next="-w -pw")),
    ("virsh", _tool("secret-set-value", from_word=2)),
    ("ngrok", _tool(next="authtoken add-authtoken")),
    ("grafana grafana-cli", _tool(next="reset-admin-password")),
    ("expose", _tool(next="token")),
    ("zrok", _tool(next="enable")),
    ("mc", _tool("set|add", from_word=3)),
    ("steam steamcmd", _tool("[-+]login", from_word=2)),
    (
        "oathtool",
        _tool(from_word=1, skips="-d --digits -N --now -S -s --time-step-size -w --window -c --counter"),
    ),
    ("lwp-request", _tool(pairs="-C", separator=":")),
    ("zpaq", _tool(joined="-k", next="-key")),
    ("create_ap", _tool(from_word=4)),
    ("xxh", _tool(next="++password ++key-passphrase")),
    ("netlify", _tool(next="--auth")),
    ("openvpn", _tool(plain="--auth-user-pass --askpass")),
    ("sort csv-diff cosign koji kreadconfig5 kreadconfig6 kwriteconfig5 kwriteconfig6", _tool(plain="--key")),
    ("git", _tool(plain="user.signingkey")),
    (
        "gpg gpg2",
        _tool(
            plain="--default-key --recv-key --search-key --edit-key --sign-key --lsign-key --delete-key"
            " --delete-secret-key --delete-secret-keys --delete-secret-and-public-key --export-secret-key"
            " --export-secret-keys --export-secret-subkeys --list-secret-keys --encrypt-to-default-key"
        ),
    ),
)


def _table() -> dict[bytes, tuple[Tool, ...]]:
    table: dict[bytes, tuple[Tool, ...]] = {}
    for names, tool in _ROWS:
        for name in _words(names):
            table[name] = (*table.get(name, ()), tool)
    return table


#: By the last part of the program's path, in lower case.
TOOLS = _table()
#: Names that are ordinary words too: programs only at the start, and behind a program that starts others.
COMMON = frozenset(
    _words(
        "ab add-user aws az bao bw exp expose fly gh git hey hive http https imp knife mc net oc rar sic sort"
    )
    + _words("cme dar security siege steam swift tea vault xh zip")
)
STARTERS = frozenset(
    _words(
        "sudo doas su runuser setpriv env nice ionice chrt taskset nohup time timeout stdbuf setsid chroot"
    )
    + _words(
        "unshare nsenter flock exec command xargs parallel find ssh watch strace ltrace gdb valgrind perf"
    )
    + _words("systemd-run capsh bwrap firejail fakeroot proxychains torsocks busybox docker podman nerdctl")
    + _words("kubectl oc then do else safespawn")
)
#: What stands before a program in a text for a shell, or in front of the program of a list of options.
BEFORE_PROGRAM = Expression(rb"|--|.*[;|&(`{]|\w+=.*", re.DOTALL)
