#!/usr/bin/env escript
%% SPDX-License-Identifier: Apache-2.0
%% The other side of test_etf.py: makes random terms, and reads and writes terms of Python's.
%% Files hold terms as a 32-bit length and the bytes of term_to_binary/1.
-mode(compile).

main(["generate", Count, Seed, Out]) ->
    rand:seed(exsss, list_to_integer(Seed)),
    Terms = [term(rand:uniform(5)) || _ <- lists:seq(1, list_to_integer(Count))],
    write(Out, [term_to_binary(T) || T <- Terms]);
main(["compare", One, Two]) ->
    %% Prints how many terms of the two files are equal, and the first pair that is not.
    Pairs = lists:zip(read(One), read(Two)),
    Different = [P || {A, B} = P <- Pairs, binary_to_term(A) =/= binary_to_term(B)],
    io:format("~b~n", [length(Pairs) - length(Different)]),
    [io:format("~tp~n", [hd(Different)]) || Different =/= []];
main(["echo", In, Out]) ->
    write(Out, [term_to_binary(binary_to_term(B)) || B <- read(In)]).

write(File, Terms) ->
    ok = file:write_file(File, [[<<(byte_size(B)):32>>, B] || B <- Terms]).

read(File) ->
    {ok, Data} = file:read_file(File),
    cut(Data).

cut(<<Size:32, Term:Size/binary, Rest/binary>>) -> [Term | cut(Rest)];
cut(<<>>) -> [].

pick(List) -> lists:nth(rand:uniform(length(List)), List).
some(Depth) -> [term(Depth - 1) || _ <- lists:seq(1, rand:uniform(5) - 1)].
bytes() -> rand:bytes(rand:uniform(40) - 1).

term(0) -> leaf(rand:uniform(18));
term(Depth) ->
    case rand:uniform(9) of
        1 -> list_to_tuple(some(Depth));
        2 -> some(Depth);
        3 -> maps:from_list([{term(Depth - 1), term(Depth - 1)} || _ <- some(Depth)]);
        4 -> [term(Depth - 1) | term(Depth - 1)];
        5 -> #{1 => term(Depth - 1), 1.0 => a, true => b, [1] => c, #{x => [y]} => d};
        6 -> lists:duplicate(rand:uniform(400), term(0));
        7 -> list_to_tuple(lists:duplicate(rand:uniform(400), term(0)));
        _ -> term(0)
    end.

leaf(1) -> rand:uniform(256) - 1;
leaf(2) -> rand:uniform(1 bsl 32) - (1 bsl 31);
leaf(3) -> pick([1, -1]) * ((1 bsl (8 * rand:uniform(40))) + pick([-1, 0, 1]));
leaf(4) -> pick([1, -1]) * ((1 bsl (2040 + rand:uniform(16))) - 1);
leaf(5) -> (rand:uniform() - 0.5) * math:pow(10, rand:uniform(600) - 300);
leaf(6) -> pick([true, false, nil, undefined, '', 'with space', ok]);
leaf(7) -> list_to_atom([rand:uniform(16#d7ff) || _ <- lists:seq(1, rand:uniform(255))]);
leaf(8) -> bytes();
leaf(9) -> <<(bytes())/binary, 5:3>>;
leaf(10) -> binary_to_list(bytes());
leaf(11) -> lists:seq(250, 260);
leaf(12) -> self();
leaf(13) -> make_ref();
leaf(14) -> hd(erlang:ports());
leaf(15) -> fun lists:map/2;
leaf(16) -> X = bytes(), fun(Y) -> {X, Y} end;
leaf(17) -> <<131, Pid/binary>> = term_to_binary(self()), % and one of another node
            Rest = binary:part(Pid, byte_size(Pid) - 12, 12),
            binary_to_term(<<131, 88, 119, 7, "a@fd::1", Rest/binary>>);
leaf(18) -> pick([[], {}, #{}, <<>>, 0.0, -0.0]).
