#!/bin/sh
# Packs the program in a wheel as tarball, .deb, .rpm and OCI image beside it, with its SBOM: pack.sh WHEEL VERSION
set -eu
wheel=$(realpath "$1") version=$2
output=$(dirname "$wheel")
shift 2
cd "$(dirname "$0")/../.."
arch=$(uname -m)
case "$arch" in x86_64) goarch=amd64 ;; aarch64) goarch=arm64 ;; *) echo "no release for $arch" >&2 && exit 1 ;; esac
name=model-catalog-$version-$arch
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022
tar_() { tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner "$@"; }

# What all packages have in common.
stage=$work/$name
mkdir -p "$stage/bin" "$work/generated"
python3 -m zipfile -e "$wheel" "$work/wheel"
cp "$work"/wheel/*.dist-info/sboms/*.json "$output/model-catalog-$version.cyclonedx.json"
install -m 755 "$work"/wheel/*.data/scripts/model-catalog "$stage/bin/"
"$stage/bin/model-catalog" generate "$work/generated"
for page in "$work"/generated/*.1; do
    install -D -m 644 "$page" "$stage/share/man/man1/${page##*/}" && gzip -9n "$stage/share/man/man1/${page##*/}"
done
install -D -m 644 "$work/generated/model-catalog.bash" "$stage/share/bash-completion/completions/model-catalog"
install -D -m 644 "$work/generated/model-catalog.fish" "$stage/share/fish/vendor_completions.d/model-catalog.fish"
install -D -m 644 "$work/generated/_model-catalog" "$stage/share/zsh/vendor-completions/_model-catalog"
sed 's|=/usr/local/bin/|=/usr/bin/|' deploy/systemd/model-catalog.service >"$stage/model-catalog.service"
find "$stage" -exec touch -d "@$SOURCE_DATE_EPOCH" {} +

export VERSION="$version" GOARCH="$goarch" STAGE="$stage"
for packager in deb rpm; do
    nfpm package --config deploy/release/nfpm.yaml --packager "$packager" --target "$output" >/dev/null
done

# The tarball is unpacked in /usr/local; its unit is that of the repository.
cp deploy/systemd/model-catalog.service "$stage/"
cp LICENSE "$stage/"
tar_ -C "$work" -c "$name" | gzip -9n >"$output/$name.tar.gz"

# The image has the program, the C library and the CA certificates of this Debian, and nothing else.
mkdir -p "$work/packages" "$work/root/usr/local/bin" "$work/root/etc/ssl/certs"
(cd "$work/packages" && apt-get download -qq libc6 ca-certificates 2>/dev/null)
for package in "$work"/packages/*.deb; do dpkg-deb -x "$package" "$work/debian"; done
(cd "$work/debian" && find . \( -name 'ld-linux*' -o -name 'lib[cm].so.6' -o -name 'libdl.so.2' -o -name 'libpthread.so.0' \
    -o -name 'libnss_dns.so.2' -o -name 'libnss_files.so.2' -o -name libresolv.so.2 \) -exec cp --parents -P {} "$work/root" \;)
find "$work/debian/usr/share/ca-certificates" -name '*.crt' | LC_ALL=C sort | xargs cat >"$work/root/etc/ssl/certs/ca-certificates.crt"
install -m 755 "$stage/bin/model-catalog" "$work/root/usr/local/bin/"
# Without root, files of the image cannot have another owner.
install -d -m 1777 "$work/root/var/lib/model-catalog"
find "$work/root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
created=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
image=$work/image
umoci init --layout "$image"
umoci new --image "$image:$version"
umoci insert --rootless --image "$image:$version" --history.created "$created" "$work/root" /
# Its settings are those of the Dockerfile.
settings=$(sed -n '/^ENV /,/[^\\]$/p' deploy/Dockerfile | sed 's/^ENV//; s/\\$//')
for setting in $settings; do set -- "$@" --config.env "$setting"; done
umoci config --image "$image:$version" --history.created "$created" --created "$created" --architecture "$goarch" --os linux \
    --config.user 65532:65532 --config.exposedports 3000/tcp --config.exposedports 3001/tcp \
    --config.entrypoint /usr/local/bin/model-catalog --config.cmd serve "$@"
umoci gc --layout "$image"
tar_ -C "$image" -cf "$output/$name.oci.tar" .

(cd "$output" && sha256sum -- *"$version"* >SHA256SUMS && ls -l)
