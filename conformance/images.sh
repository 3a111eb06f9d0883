#!/bin/sh
# Makes the two images that the fixtures ask for, under the tags that they ask
# for, from the server programs of this machine: for machines that have a Docker
# engine and no way to pull.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# $1: root; further: programs. Each comes with the libraries that it needs.
collect() {
    root=$1; shift
    mkdir -p "$root/tmp" "$root/etc"
    chmod 1777 "$root/tmp"
    cp /etc/passwd /etc/group "$root/etc/"
    for program in "$@"; do
        for file in "$program" $(ldd "$program" | grep -o '/[^ )]*'); do
            mkdir -p "$root$(dirname "$file")"
            cp -Ln "$file" "$root$file" || true
        done
    done
}

redis=$(command -v redis-server)
collect "$folder/redis" "$redis" /bin/sh
# The official image listens to everybody, too.
mkdir -p "$folder/redis/usr/local/bin"
cat > "$folder/redis/usr/local/bin/redis-server" <<END
#!/bin/sh
exec $redis "\$@" --protected-mode no
END
chmod +x "$folder/redis/usr/local/bin/redis-server"
tar -C "$folder/redis" -c . | docker import --change 'CMD ["redis-server"]' - redis:7.4.5-alpine

bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)
version=$(basename "$(dirname "$bin")")
root=$folder/postgres
collect "$root" "$bin/initdb" "$bin/postgres" /bin/sh /usr/bin/setpriv /bin/mkdir /bin/chown
mkdir -p "$root$(dirname "$bin")" "$root/usr/share"
cp -r /usr/share/postgresql "$root/usr/share/"
cp -rL "/usr/lib/postgresql/$version/lib" "$root/usr/lib/postgresql/$version/"
cp -r /usr/share/zoneinfo "$root/usr/share/"
cat > "$root/entry" <<END
#!/bin/sh
set -e
mkdir -p /data
chown postgres /data
as="setpriv --reuid=postgres --regid=postgres --clear-groups"
\$as $bin/initdb -D /data/db -U postgres --auth=trust --no-locale --encoding=UTF8
echo "host all all all trust" >> /data/db/pg_hba.conf
echo "database system is ready to accept connections"
exec \$as $bin/postgres -D /data/db -c listen_addresses='*' -c unix_socket_directories= "\$@"
END
chmod +x "$root/entry"
tar -C "$root" -c . | docker import --change 'ENTRYPOINT ["/entry"]' - postgres:17.5-alpine
