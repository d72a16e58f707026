#!/bin/sh
# Puts microhv into the GRUB menu of this Debian machine, whose own system becomes the first guest on its own disks.
# The default of the menu stays: only `grub-reboot microhv` chooses the new entry, once.
#
#   sh install.sh             install, or replace another version
#   sh install.sh --check     only say what would be done, or what stands in the way
#   sh install.sh --remove    take everything away
#   --root DIR                files below DIR are meant, for trials with programs of the same names that know of it

set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=
action=install
while [ $# -gt 0 ]; do
    case $1 in
    --check) action=check ;;
    --remove) action=remove ;;
    --root) root=${2:?--root takes a directory} && shift ;;
    *) echo "usage: install.sh [--check|--remove] [--root DIR]" >&2 && exit 2 ;;
    esac
    shift
done

home=$root/boot/microhv
# Behind all others, so that entries keep their numbers: the menu's default may be a number.
entry=$root/etc/grub.d/45_microhv
link=$root/etc/systemd/network/70-microhv.link
grub=$root/boot/grub
# What GRUB, the hypervisor and dom0 have of the memory: MiB, and one part in so many of all.
kept_mib=144
kept_part=64
least_mib=256

say() { echo "microhv: $*"; }
changed=
fail() {
    echo "microhv: $*" >&2
    [ -n "$changed" ] || echo "microhv: nothing has been changed" >&2
    exit 1
}

# Replaces file $1 by what standard input gives: whole or not at all. GRUB's tools skip names with a leading dot.
replace() {
    new=${1%/*}/.${1##*/}.new
    mkdir -p "${1%/*}" && cat > "$new" && chmod "$2" "$new" && sync "$new" && mv -f "$new" "$1" && sync "${1%/*}" ||
        fail "cannot write $1"
}

update_menu() {
    if command -v update-grub > /dev/null; then update-grub; else grub-mkconfig -o "$grub/grub.cfg"; fi
}

# ---- What must hold ----

check_person_and_machine() {
    [ "$(id -u)" = 0 ] || fail "run as root"
    machine=$(uname -m)
    [ "$machine" = x86_64 ] || fail "this is a machine of another kind, $machine: microhv runs on x86_64"
    if ! command -v update-grub > /dev/null && ! command -v grub-mkconfig > /dev/null; then
        fail "neither update-grub nor grub-mkconfig is here: microhv is started by GRUB 2"
    fi
    [ -f "$grub/grub.cfg" ] || fail "$grub/grub.cfg is not there: microhv is started by GRUB 2"
}

check_files() {
    (cd "$here" && sha256sum --quiet -c SHA256SUMS > /dev/null 2>&1) ||
        fail "the files beside install.sh are not those of SHA256SUMS: copy the directory again"
}

check_not_a_guest() {
    if [ "$(cat "$root/sys/hypervisor/type" 2> /dev/null)" = xen ]; then
        fail "this system runs as a guest: start it by itself (reboot the machine from dom0), and install then"
    fi
}

check_grub() {
    platform=i386-pc
    [ ! -d "$root/sys/firmware/efi" ] || platform=x86_64-efi
    [ -f "$grub/$platform/multiboot2.mod" ] ||
        fail "$grub/$platform/multiboot2.mod is not there, which loads microhv: run grub-install"
    for variable in "$root"/sys/firmware/efi/efivars/SecureBoot-*; do
        if [ -f "$variable" ] && [ "$(od -An -tu1 -j4 -N1 "$variable" | tr -d ' ')" = 1 ]; then
            fail "Secure Boot is on, and GRUB then loads no kernel without a signature: turn it off in the firmware"
        fi
    done
    # grub-reboot leaves a word in a file, which GRUB must be able to erase: or each start would try microhv again.
    layers=$(grub-probe --target=abstraction "$grub") || fail "grub-probe cannot tell how $grub is stored"
    [ -z "$layers" ] || fail "GRUB cannot write to $grub on $layers, so that it would try microhv again and again"
    kind=$(grub-probe --target=fs "$grub") || fail "grub-probe cannot tell the file system of $grub"
    case $kind in
    ext2 | fat | xfs) ;;
    *) fail "GRUB cannot write to $grub on $kind, so that it would try microhv again and again" ;;
    esac
    grep -q next_entry "$grub/grub.cfg" || fail "$grub/grub.cfg does not know grub-reboot: run update-grub first"
}

check_kernel() {
    release=$(uname -r)
    config=$root/boot/config-$release
    [ -f "$config" ] || fail "$config is not there: cannot tell whether this kernel can be a guest"
    grep -qx CONFIG_XEN_PV=y "$config" || fail "the kernel $release has no CONFIG_XEN_PV: it cannot be a guest"
    if ! grep -qx CONFIG_XEN_BLKDEV_FRONTEND=y "$config"; then
        lsinitramfs "$root/boot/initrd.img-$release" | grep -q /xen-blkfront.ko ||
            fail "the ramdisk of $release has no xen-blkfront: write it to $root/etc/initramfs-tools/modules, run update-initramfs -u"
    fi
    if grep -qxE 'CONFIG_KERNEL_(ZSTD|LZ4)=y' "$config"; then
        fail "the kernel $release is packed in a way that PV GRUB does not unpack (zstd, lz4)"
    fi
    # A ramdisk that is made in the guest would have the drivers of the guest's disks alone, and plain Debian would not start.
    if grep -qsxE 'MODULES=dep' "$root"/etc/initramfs-tools/initramfs.conf "$root"/etc/initramfs-tools/conf.d/*; then
        fail "MODULES=dep in $root/etc/initramfs-tools: a ramdisk made in the guest could not start this machine: say MODULES=most"
    fi
}

# In the guest the disks have other names.
check_names() {
    odd='^/dev/(sd|hd|vd|nvme|mmcblk|disk/by-(id|path)/)'
    named=$(awk -v odd="$odd" '$1 ~ odd && $4 !~ /noauto|nofail/ { print $1; exit }' "$root/etc/fstab")
    [ -z "$named" ] || fail "/etc/fstab says $named, which has another name in a guest: say UUID=... (blkid has it)"
    if [ -f "$root/etc/crypttab" ]; then
        named=$(awk -v odd="$odd" '$1 !~ /^#/ && $2 ~ odd { print $2; exit }' "$root/etc/crypttab")
        [ -z "$named" ] || fail "/etc/crypttab says $named, which has another name in a guest: say UUID=... (blkid has it)"
    fi
    named=$(awk -v odd="$odd" '$1 == "linux" { for (i = 3; i <= NF; i++) if (sub("^root=", "", $i) && $i ~ odd) {
        print $i; exit } }' "$grub/grub.cfg")
    [ -z "$named" ] || fail "$grub/grub.cfg says root=$named, which has another name in a guest: unset GRUB_DISABLE_LINUX_UUID"
}

# ---- What the guest gets ----

# The driver of the device $1 of sysfs, or of what the device hangs on, if dom0 has a driver for that too.
driver_of() {
    at=$(readlink -f "$1") || return 0
    # dom0 finds what is on the machine's first PCI domain. What is behind a controller such as Intel's VMD has a domain of its own.
    case ${at#*/pci0000:} in */pci*:* | "$at") return ;; esac
    while [ -n "$at" ] && [ "$at" != / ]; do
        driver=$(basename "$(readlink -f "$at/driver" 2> /dev/null || echo none)")
        case $driver in virtio_blk | virtio_net) echo "$driver" && return ;;
        # In RAID mode a controller has another class, and disks that only Linux finds.
        ahci) if [ "$(cat "$at/class")" = 0x010601 ]; then echo "$driver" && return; fi ;;
        nvme) if [ "$(cat "$at/class")" = 0x010802 ]; then echo "$driver" && return; fi ;;
        e1000e) if [ "$(cat "$at/device")" = 0x10d3 ]; then echo "$driver" && return; fi ;;
        esac
        at=${at%/*}
    done
}

# dom0's name of disk $1: that below by-id, which is Linux's; without one, that of the only disk of its kind.
dom0_name() {
    found=
    # dom0 knows a controller's first name space alone.
    case $1 in nvme*n1) ;; nvme*) return 1 ;; esac
    twins=$(lsblk -dno MODEL,SERIAL "/dev/$1" 2> /dev/null)
    if [ -n "$twins" ] && [ "$(lsblk -dno MODEL,SERIAL 2> /dev/null | grep -cxF "$twins")" -gt 1 ]; then return 1; fi
    for name in "$root"/dev/disk/by-id/*; do
        case ${name##*/} in
        *-part[0-9]* | nvme-eui.* | nvme-nvme.* | nvme-uuid.* | *_[0-9]) continue ;;
        virtio-* | nvme-* | ata-*) ;;
        *) continue ;;
        esac
        if [ "$(basename "$(readlink "$name")")" = "$1" ]; then found=/dev/disk/by-id/${name##*/} && break; fi
    done
    if [ -z "$found" ]; then
        own=$(driver_of "$root/sys/block/$1/device")
        alike=0
        for other in "$root"/sys/block/*; do
            [ "$(driver_of "$other/device")" != "$own" ] || alike=$((alike + 1))
        done
        [ "$alike" = 1 ] || return 1
        case $own in virtio_blk) found=/dev/vda ;; nvme) found=/dev/nvme0n1 ;; *) found=/dev/sda ;; esac
    fi
    echo "$found"
}

# The disks below what is mounted by /etc/fstab, that of the root first.
find_disks() {
    mounted=$(awk '$1 !~ /^#/ && $2 ~ /^\// && $2 != "/" { print $2 }' "$root/etc/fstab")
    needed=$(awk '$1 !~ /^#/ && $2 ~ /^\// && $4 !~ /noauto|nofail/ { print $2 }' "$root/etc/fstab")
    disks=
    for place in / $mounted; do
        if ! source=$(findmnt -nvo SOURCE "$place" 2> /dev/null); then
            case " $(echo $needed) " in *" $place "*) fail "/etc/fstab has $place, which is not mounted: mount it" ;; esac
            continue
        fi
        case $source in /dev/*) ;; *) continue ;; esac
        if [ "$(findmnt -nvo FSTYPE "$place")" = btrfs ] && [ "$(btrfs filesystem show "$place" | grep -c devid)" != 1 ]; then
            fail "$place is a btrfs over several disks: that is not tried"
        fi
        for disk in $(lsblk -srno NAME,TYPE "$source" | awk '$2 == "disk" { print $1 }'); do
            case " $disks " in *" $disk "*) ;; *) disks="$disks $disk" ;; esac
        done
    done
    [ -n "$disks" ] || fail "cannot tell which disk holds /"
    letters="a b c d e f g h i j k l m n o p"
    for disk in $disks; do
        [ -n "$(driver_of "$root/sys/block/$disk/device")" ] ||
            fail "dom0 has no driver for the disk $disk: it drives virtio, NVMe and AHCI"
        name=$(dom0_name "$disk") || fail "dom0 could not tell $disk from other disks: it has no name in /dev/disk/by-id"
        case $name in *[,\'\"\\]*) fail "$name: dom0's configurations cannot hold this name" ;; esac
        letter=${letters%% *}
        letters=${letters#* }
        disk_list="${disk_list:+$disk_list, }'phy:$name,xvd$letter,w'"
    done
}

# The card that has the default route, if dom0 drives that card: dom0 numbers its cards as they are on the bus.
find_card() {
    card=$(ip -o route show default 2> /dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p' | head -n 1)
    [ -n "$card" ] && [ -e "$root/sys/class/net/$card/device" ] || return 0
    place=
    number=0
    for each in "$root"/sys/class/net/*; do
        case $(driver_of "$each/device") in virtio_net | e1000e) ;; *) continue ;; esac
        echo "$(readlink -f "$each/device" | grep -o '[0-9a-f]*:[0-9a-f]*:[0-9a-f]*\.[0-7]' | tail -n 1) ${each##*/}"
    done | sort > "$work/cards"
    while read -r _ each; do
        [ "$each" != "$card" ] || place=$number
        number=$((number + 1))
    done < "$work/cards"
    [ -n "$place" ] || return 0
    # An address of the guest's own, the same at each start: the card's is dom0's.
    digits=$(sha256sum < "$root/sys/class/net/$card/address" | cut -c1-6)
    address=00:16:3e:$(echo "$digits" | sed 's/\(..\)\(..\)\(..\)/\1:\2:\3/')
    vif="'mac=$address,bridge=eth$place'"
}

find_memory() {
    all=$(awk '$1 == "MemTotal:" { print int($2 / 1024) }' "$root/proc/meminfo")
    memory=$((all - kept_mib - all / kept_part))
    [ "$memory" -ge "$least_mib" ] || fail "$all MiB of memory leave $memory MiB for the guest: $least_mib are needed"
    vcpus=$(nproc)
    [ "$vcpus" -le 64 ] || vcpus=64
}

# ---- The files ----

guest() {
    echo "# This machine's own system, as a guest on its own disks."
    echo "name = \"debian\""
    echo "kernel = \"/boot/pvgrub\""
    echo "memory = $memory"
    echo "vcpus = $vcpus"
    echo "disk = [ $disk_list ]"
    [ -z "${vif:-}" ] || echo "vif = [ $vif ]"
    echo "on_poweroff = \"destroy\""
    echo "on_reboot = \"restart\""
    echo "on_crash = \"destroy\""
}

# However the guest ends, and when it cannot even begin, the machine goes back to what it was.
lines() {
    echo "try xl create -c -F /boot/debian.cfg"
    echo "echo the guest has ended: the machine starts again, with the menu's default"
    echo "sleep 3"
    echo "reboot"
}

# A member of the boot bundle (cpio, newc): file $1 as $2.
member() {
    size=$(wc -c < "$1")
    printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\0' \
        1 33188 0 0 1 0 "$size" 0 0 0 0 $((${#2} + 1)) 0 "$2"
    zeros $(((4 - (110 + ${#2} + 1) % 4) % 4))
    cat "$1"
    zeros $(((4 - size % 4) % 4))
}
zeros() { head -c "$1" /dev/zero; }

menu() {
    cat << END
#!/bin/sh
# Written by microhv's install.sh; \`install.sh --remove\` takes it away.
[ -f "$1/boot.cpio" ] || exit 0
cat << 'ENTRY'
if [ "\$grub_platform" != xen ]; then
menuentry 'microhv, with this system as its first guest' --class debian --id microhv {
    insmod multiboot2
    if [ "\$grub_platform" = efi ]; then insmod all_video; else set gfxpayload=text; fi
    search --no-floppy --fs-uuid --set=root $uuid
    multiboot2 $path/microhv
    module2 $path/dom0 keep
    module2 $path/boot.cpio
}
elif [ -z "\$default" ]; then
    # PV GRUB, for the guest: with GRUB_DEFAULT=saved the menu has looked for the saved entry where PV GRUB itself lies.
    search --no-floppy --fs-uuid --set=microhv_grub $grub_uuid
    if [ -s (\$microhv_grub)$grub_path/grubenv ]; then
        load_env --file (\$microhv_grub)$grub_path/grubenv saved_entry
        set default="\$saved_entry"
    fi
fi
ENTRY
END
}

copy() {
    rm -rf "$home"/*.partial && mkdir -p "$2.partial" || return 1
    for file in microhv dom0 boot.cpio; do
        cp "$1/$file" "$2.partial/$file" && sync "$2.partial/$file" || return 1
    done
    sync "$2.partial" && mv "$2.partial" "$2" && sync "$home"
}

remove() {
    changed=yes
    rm -f "$entry"
    [ ! -d "$root/etc/grub.d" ] || update_menu
    if grub-editenv "$grub/grubenv" list 2> /dev/null | grep -qx next_entry=microhv; then
        grub-editenv "$grub/grubenv" unset next_entry
    fi
    rm -rf "$home"
    rm -f "$link" "${link%/*}/.${link##*/}.new" "${entry%/*}/.${entry##*/}.new"
    say "removed"
}

install() {
    uuid=$(grub-probe --target=fs_uuid "$root/boot") || fail "grub-probe cannot tell the UUID of $root/boot"
    base=$(grub-mkrelpath "$root/boot") || fail "grub-mkrelpath cannot tell what GRUB calls $root/boot"
    grub_uuid=$(grub-probe --target=fs_uuid "$grub") || fail "grub-probe cannot tell the UUID of $grub"
    grub_path=$(grub-mkrelpath "$grub") || fail "grub-mkrelpath cannot tell what GRUB calls $grub"
    # One directory for each version: the menu names the old one until the new one is whole.
    version=$(cat "$work/microhv" "$work/dom0" "$work/boot.cpio" | sha256sum | cut -c1-16)
    new=$home/$version
    if ! [ -d "$new" ] || ! (for file in microhv dom0 boot.cpio; do cmp -s "$work/$file" "$new/$file" || exit 1; done); then
        need=$(($(cat "$work/microhv" "$work/dom0" "$work/boot.cpio" | wc -c) / 1024 + 1024))
        room=$(df -Pk "$root/boot" | awk 'NR == 2 { print $4 }')
        [ "$room" -ge "$need" ] || fail "$root/boot has room for $room KiB: $need are needed"
        [ "$action" = check ] || { changed=yes && rm -rf "$new"; }
        [ "$action" = check ] || copy "$work" "$new" || { rm -rf "$new.partial"; fail "cannot copy to $home"; }
    fi
    if [ "$action" = check ]; then
        say "could be installed; the guest would have:"
        guest
        return
    fi
    changed=yes
    path=${base%/}/microhv/$version
    if [ -n "${vif:-}" ]; then
        printf '# In the guest, the interface has the name of the card.\n[Match]\nMACAddress=%s\n[Link]\nName=%s\n' \
            "$address" "$card" | replace "$link" 644
    else
        rm -f "$link"
    fi
    before=$work/entry
    [ ! -f "$entry" ] || cp "$entry" "$before"
    menu "$new" | replace "$entry" 755
    if ! update_menu; then
        if [ -f "$before" ]; then replace "$entry" 755 < "$before"; else rm -f "$entry"; fi
        fail "update-grub failed; $entry is as before"
    fi
    grep -qF "$path/boot.cpio" "$grub/grub.cfg" || fail "update-grub has made no entry of $entry"
    # grub.cfg is on the disk before what it named is gone.
    sync "$grub/grub.cfg" "$grub"
    for old in "$home"/*; do
        [ "$old" = "$new" ] || rm -rf "$old"
    done
    say "installed; the menu's default is as before"
    [ -n "${vif:-}" ] || say "the guest has no network: dom0 drives no card that has the default route (virtio, e1000e)"
    say "to try it once:  grub-reboot microhv && reboot"
}

check_person_and_machine
if [ "$action" = remove ]; then
    remove
    exit
fi
check_files
check_not_a_guest
check_grub
check_kernel
check_names
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
find_disks
find_card
find_memory
guest > "$work/debian.cfg"
lines > "$work/.script"
cp "$here/microhv" "$here/dom0" "$work"
{
    member "$work/debian.cfg" debian.cfg
    member "$work/.script" .script
    cat "$here/boot.cpio"
} > "$work/boot.cpio"
install
