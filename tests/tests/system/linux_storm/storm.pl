# Processes, pipes and signals as a Perl script has them. Prints `storm.pl: ok`.
use strict;
use warnings;
use POSIX ();
use Socket;

# A chain of processes, each of which hands on what it reads, one larger.
my ($length, $rounds) = (40, 50);
pipe(my $first, my $begin) or die "pipe: $!";
my ($in, @chain) = ($first);
for my $link (1 .. $length) {
    pipe(my $next, my $out) or die "pipe: $!";
    my $pid = fork() // die "fork: $!";
    if (!$pid) {
        close($begin);
        while (sysread($in, my $word, 4)) {
            syswrite($out, pack("N", unpack("N", $word) + 1));
        }
        POSIX::_exit(0);
    }
    push @chain, $pid;
    close($out);
    $in = $next;
}
for my $round (1 .. $rounds) {
    syswrite($begin, pack("N", $round * 1000));
    sysread($in, my $word, 4) == 4 or die "the chain broke";
    unpack("N", $word) == $round * 1000 + $length or die "a link forgot to count";
}
close($begin);
for my $pid (@chain) {
    waitpid($pid, 0) == $pid && $? == 0 or die "a link ended with $?";
}

# Signals to and from a child.
my $heard = 0;
local $SIG{USR1} = sub { $heard++ };
my $parent = $$;
my $child = fork() // die "fork: $!";
if (!$child) {
    my $told = 0;
    local $SIG{USR2} = sub { $told++ };
    for my $number (1 .. 100) {
        kill('USR1', $parent);
        select(undef, undef, undef, 0.001) while $told < $number;
    }
    POSIX::_exit(0);
}
for my $number (1 .. 100) {
    select(undef, undef, undef, 0.001) while $heard < $number;
    kill('USR2', $child);
}
waitpid($child, 0);
$? == 0 or die "the child that counts signals ended with $?";

# An alarm in the middle of work; sockets between relatives; a program for each line.
my $rang = 0;
local $SIG{ALRM} = sub { $rang = 1 };
alarm(1);
my $sum = 0;
$sum += $_ % 7 while !$rang && ++$_;
socketpair(my $left, my $right, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die "socketpair: $!";
my $other = fork() // die "fork: $!";
if (!$other) {
    close($left);
    print {$right} join('', reverse(split(//, <$right>))), "\n";
    close($right);
    POSIX::_exit(0);
}
close($right);
syswrite($left, "storm\n");
my $answer = do { local $/; <$left> };
waitpid($other, 0);
index($answer, "mrots") >= 0 or die "a socket's answer: $answer";
for my $number (1 .. 60) {
    my $said = `echo $number | cat`;
    $said eq "$number\n" or die "a program said $said";
}
print "storm.pl: ok\n";
