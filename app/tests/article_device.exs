# SPDX-License-Identifier: Apache-2.0
# A device of the published mesh of Nerves devices, for test_article_device.py: what it does with
# its name, its socket, its beacon and its connections, in the same order and with the kernel's
# defaults. Only what is hardware there comes from here: the serial number from the command line,
# the interface from the test, and what the radio tells of it as lines of standard input:
#
#     lower_up    the interface mesh0 is up
#     peers       the radio has other peers than before
#     list        print the connected nodes, sorted, on one line
#     call NODE   print what that node's net_kernel answers to a ping

defmodule Device do
  use GenServer

  @prefix "fd12:3456:789a:1::"
  @group {0xFF02, 0, 0, 0, 0, 0, 0, 0x69}
  @port 49999

  def start_link(serial), do: GenServer.start_link(__MODULE__, serial, name: __MODULE__)

  @impl true
  def init(serial), do: {:ok, %{serial: serial, socket: nil, select: nil, node: nil}}

  # Six bytes of the serial number, in groups as they come: zeros stay, and the group of zeros
  # before them is never written.
  defp address(state) do
    <<_::binary-2, identity::binary-6, _::binary-1>> = Base.decode16!(state.serial)
    digits = Base.encode16(identity, case: :lower) |> String.to_charlist()
    @prefix <> (digits |> Enum.chunk_every(4) |> Enum.join(":"))
  end

  @impl true
  def handle_info({:radio, :lower_up}, state) do
    address = address(state)
    :os.cmd(String.to_charlist("ip addr add #{address}/48 dev mesh0"))

    {:ok, socket} = :socket.open(:inet6, :dgram, :udp)
    :ok = :socket.setopt(socket, :socket, :bindtodevice, ~c"mesh0")
    :ok = :socket.setopt(socket, :socket, :reuseport, true)
    :ok = :socket.setopt(socket, :socket, :reuseaddr, true)
    :ok = :socket.setopt(socket, :ipv6, :multicast_loop, false)
    :ok = :socket.setopt(socket, :ipv6, :multicast_hops, 255)
    {:ok, interface} = :net.if_name2index(~c"mesh0")
    :ok = :socket.setopt(socket, :ipv6, :multicast_if, interface)
    :ok = :socket.bind(socket, %{family: :inet6, port: @port})
    membership = %{multiaddr: @group, interface: interface}
    :ok = :socket.setopt(socket, :ipv6, :add_membership, membership)
    {:ok, node} = Node.start(:"myapp@#{address}")
    Node.set_cookie(:democookie)
    IO.puts("started #{Node.self()}")
    {:noreply, %{state | socket: socket, node: node}, {:continue, :receive}}
  end

  def handle_info({:radio, :peers}, state), do: {:noreply, state, {:continue, :announce}}

  def handle_info({:"$socket", socket, :select, select}, %{socket: socket, select: select} = state) do
    {:noreply, %{state | select: nil}, {:continue, :receive}}
  end

  @impl true
  def handle_continue(:receive, state) do
    case :socket.recvfrom(state.socket, [], :nowait) do
      {:select, {:select_info, _tag, select}} ->
        {:noreply, %{state | select: select}}

      {:ok, {_source, text}} ->
        case :inet.parse_ipv6_address(String.to_charlist(text)) do
          {:ok, _address} ->
            unless :"myapp@#{text}" in Node.list(), do: Node.connect(:"myapp@#{text}")

          other ->
            IO.puts("not an address: #{inspect(other)}")
        end

        {:noreply, state, {:continue, :receive}}
    end
  end

  def handle_continue(:announce, state) do
    case :socket.sendto(state.socket, address(state), %{family: :inet6, port: @port, addr: @group}) do
      :ok -> {:noreply, state}
      {:error, _} -> {:noreply, state, {:continue, :announce}}
    end
  end
end

[serial] = System.argv()
{:ok, _} = Device.start_link(serial)

for line <- IO.stream(:stdio, :line) do
  case String.split(line) do
    ["list"] -> IO.puts("nodes " <> (Node.list() |> Enum.sort() |> Enum.join(" ")))
    ["call", name] -> IO.puts("answer #{:net_adm.ping(String.to_atom(name))}")
    [event] -> send(Device, {:radio, String.to_atom(event)})
  end
end
