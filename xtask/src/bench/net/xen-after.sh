for guest in $guests; do
    /usr/lib/xen-4.17/bin/xen-mfndump dump-p2m "$(xl domid "$guest")" | python3 -c '
import re, sys
pages = sorted({int(page, 16) for page in re.findall(r"mfn=0x([0-9a-f]+)", sys.stdin.read())})
pages = [page for page in pages if page < 1 << 40]
first = None
for page, following in zip(pages, pages[1:] + [None]):
    first = page if first is None else first
    if following != page + 1:
        print("net-pages", first, page)
        first = None
'
done
